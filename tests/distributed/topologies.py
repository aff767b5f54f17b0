"""How parameters are spread over ranks, as data, and which elements of them each rank holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

SHAPES = ((), (1,), (2,), (7,), (0, 3), (1, 9), (5, 4), (3, 7), (8, 6), (4, 3, 2, 3))


class Layers(nn.Module):
    """Two linear layers around a norm, and another layer. Rows as many as ranks, fewer, and such that do not divide evenly."""

    def __init__(self, wide: int = 8) -> None:
        super().__init__()
        self.rising = nn.Linear(6, wide)
        self.falling = nn.Linear(wide, 6)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x + self.falling(self.rising(x).relu())))  # type: ignore[no-any-return]


class Topology(NamedTuple):
    """``make``: parameters, most of them DTensors, from what it is given of the whole tensors."""

    ranks: int
    shapes: tuple[tuple[int, ...], ...]
    make: Callable[[Sequence[Tensor]], list[Tensor]]


class Part(NamedTuple):
    """What a rank holds of a parameter. ``like``: a tensor that is spread in this way. ``index``: int64, in its local shape,
    the places of its elements in the whole tensor."""

    like: Any
    index: Tensor

    @property
    def is_sharded(self) -> bool:
        """Whether no rank has all of it, and there is something to have."""
        placements = self.like.placements if isinstance(self.like, DTensor) else ()
        return self.like.numel() > 1 and not all(placement.is_replicate() for placement in placements)

    def of(self, whole: Tensor, *, offset: int = 0) -> Tensor:
        """This rank's part of ``whole``, a DTensor where the parameter is one. ``offset``: of its memory, in elements."""
        own = torch.empty(self.index.numel() + offset, dtype=whole.dtype)[offset:].view(self.index.shape)
        return self.spread(own.copy_(whole.flatten()[self.index]))

    def spread(self, own: Tensor) -> Tensor:
        if not isinstance(self.like, DTensor):
            return own
        mesh, placements = self.like.device_mesh, self.like.placements
        return DTensor.from_local(
            own, mesh, placements, run_check=False, shape=self.like.shape, stride=self.like.stride()
        )


def parts(topology: Topology) -> list[Part]:
    numbers = [torch.arange(torch.Size(shape).numel()).float().view(shape) for shape in topology.shapes]
    made = [tensor.detach() for tensor in topology.make(numbers)]
    return [Part(tensor, local(tensor).long()) for tensor in made]


def whole_parts(topology: Topology) -> list[Part]:
    """Those of one process that has everything."""
    return [Part(torch.empty(s), torch.arange(torch.Size(s).numel()).view(s)) for s in topology.shapes]


def whole(shapes: Iterable[Sequence[int]], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random tensors, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.randn(tuple(shape), generator=generator, dtype=wide).to(dtype) for shape in shapes]


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor  # type: ignore[no-any-return]


def assembled(shape: Sequence[int], indices: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
    """The whole tensor of what the ranks hold; what several of them hold must be the same bits."""
    found = torch.zeros(torch.Size(shape).numel(), dtype=held[0].dtype)
    missing = torch.ones_like(found, dtype=torch.bool)
    for index, own in zip(indices, held, strict=True):
        known = ~missing[index]
        assert torch.equal(found[index][known], own[known]), "replicas differ"
        found[index] = own
        missing[index] = False
    assert not missing.any()
    return found.view(tuple(shape))


def _mesh(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard") if len(shape) > 1 else ("ranks",))


def _placed(placements: Callable[[int], Any], *shape: int) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Each tensor on the mesh of ``shape`` as ``placements(number of dimensions)`` says; None: a plain tensor."""

    def make(values: Sequence[Tensor]) -> list[Tensor]:
        mesh = _mesh(*shape)
        wanted = [placements(tensor.dim()) for tensor in values]
        return [
            tensor.clone() if how is None else distribute_tensor(tensor, mesh, how, src_data_rank=None)
            for tensor, how in zip(values, wanted, strict=True)
        ]

    return make


def _sharded(dim: int) -> Callable[[int], Any]:
    return lambda dims: [Shard(dim)] if -dims <= dim < dims else [Replicate()]


def _layers(spread: Callable[[Layers, DeviceMesh], Any], *shape: int, wide: int = 8) -> Any:
    """The parameters of `Layers`, after ``spread``."""

    def make(values: Sequence[Tensor]) -> list[Tensor]:
        return list(layers(spread, values, *shape, wide=wide).parameters())

    return make


def layers(
    spread: Callable[[Layers, DeviceMesh], Any],
    values: Sequence[Tensor],
    *shape: int,
    wide: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Layers:
    model = Layers(wide).to(dtype)
    with torch.no_grad():
        for param, tensor in zip(model.parameters(), values, strict=True):
            param.copy_(tensor)
    spread(model, init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[: len(shape)]))
    return model


def fully_sharded(model: Layers, mesh: DeviceMesh) -> None:
    for layer in (model.rising, model.falling):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def tensor_parallel(model: Layers, mesh: DeviceMesh) -> None:
    """The norm sees a part of the batch on each rank, so that gradients of its weights are sums that have yet to be formed."""
    parallelize_module(model, mesh, {"rising": ColwiseParallel(), "falling": RowwiseParallel()})

    def split(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        return DTensor.from_local(inputs[0], mesh, [Replicate()]).redistribute(placements=[Shard(0)])

    def join(module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()  # type: ignore[no-any-return]

    distribute_module(model.norm, mesh, input_fn=split, output_fn=join)


def both(model: Layers, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh["tensor"], {"rising": ColwiseParallel(), "falling": RowwiseParallel()})
    fully_sharded(model, mesh["data"])


_OF_LAYERS = {wide: tuple(tuple(param.shape) for param in Layers(wide).parameters()) for wide in (5, 8)}
_ALL = [Replicate(), Shard(0), Shard(1)]


def _mixed(values: Sequence[Tensor], ranks: int) -> list[Tensor]:
    mesh = _mesh(ranks)
    made = []
    for number, tensor in enumerate(values):
        how = [None, [Shard(0)] if tensor.dim() else [Replicate()], [Replicate()]][number % 3]
        made.append(tensor.clone() if how is None else distribute_tensor(tensor, mesh, how, src_data_rank=None))
    return made


def _square(values: Sequence[Tensor]) -> list[Tensor]:
    """Every pair of placements, on a mesh of two dimensions."""
    mesh = _mesh(2, 2)
    pairs = [(first, second) for first in _ALL for second in _ALL]
    return [
        distribute_tensor(tensor, mesh, pairs[number // 4], src_data_rank=None) for number, tensor in enumerate(values)
    ]


TOPOLOGIES = {
    **{f"{ranks} ranks, rows": Topology(ranks, SHAPES, _placed(_sharded(0), ranks)) for ranks in (2, 3)},
    "3 ranks, columns": Topology(3, SHAPES, _placed(_sharded(1), 3)),
    "2 ranks, last dimension": Topology(2, SHAPES, _placed(_sharded(-1), 2)),
    "2 ranks, some plain": Topology(2, SHAPES, lambda values: _mixed(values, 2)),
    "3 ranks, some plain": Topology(3, SHAPES, lambda values: _mixed(values, 3)),
    "FSDP2": Topology(2, _OF_LAYERS[5], _layers(fully_sharded, 2, wide=5)),
    "FSDP2, 3 ranks": Topology(3, _OF_LAYERS[5], _layers(fully_sharded, 3, wide=5)),
    "tensor parallel": Topology(2, _OF_LAYERS[8], _layers(tensor_parallel, 2)),
    "tensor parallel, 3 ranks": Topology(3, _OF_LAYERS[5], _layers(tensor_parallel, 3, wide=5)),
    "HSDP": Topology(4, _OF_LAYERS[5], _layers(fully_sharded, 2, 2, wide=5)),
    "FSDP2 and tensor parallel": Topology(4, _OF_LAYERS[8], _layers(both, 2, 2)),
    "4 ranks in a square": Topology(4, ((5, 4), (3, 7), (8, 6), (1, 9)) * 9, _square),
}
