"""benchmarks.projection against torch's engine: groups of up to 1024 ranks of which only one exists, and nobody answers.

Each collective adds, as if all ranks held what this one does, and is written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import regkernels
from benchmarks import projection, sharding
from benchmarks.sharding import Layout, Traffic, Weight
from regkernels.distributed.shards import held

MODEL = sharding.decoder("small", width=40, blocks=2, hidden=72, keys=16, vocabulary=96)
LAYOUTS = (
    Layout(8),
    Layout(64),
    Layout(1024),
    Layout(8, replicas=8),
    Layout(8, tensor=8),
    Layout(128, tensor=8),
)


class Sent(NamedTuple):
    operation: str
    ranks: int
    bytes: int  # that this rank contributes or, of a reduce-scatter, keeps

    @property
    def traffic(self) -> Traffic:
        if self.operation == "allreduce_":  # as a ring does it, which is the least that there is
            return Traffic(1, self.bytes * 2 * (self.ranks - 1) / self.ranks)
        assert self.operation in ("_allgather_base_", "_reduce_scatter_base_"), self
        return Traffic(1, self.bytes * (self.ranks - 1))


class Recording(TorchDispatchMode):
    """Collectives within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            group = next(value for value in args if isinstance(value, torch.ScriptObject))
            ranks = distributed.ProcessGroup.unbox(group).size()
            own = args[0] if name == "allreduce_" or "scatter" in name else args[1]
            tensors = own if isinstance(own, list) else [own]
            if name == "allreduce_":
                for tensor in tensors:
                    tensor.mul_(ranks)
            self.sent.append(Sent(name, ranks, sum(tensor.nbytes for tensor in tensors)))
        return result

    @property
    def traffic(self) -> Traffic:
        return sharding.combined(sent.traffic for sent in self.sent)


class Block(nn.Module):
    """Whatever the shapes are: the sum of its weights."""

    def __init__(self, weights: tuple[Weight, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(weight.shape, dtype=dtype) for weight in weights)

    def forward(self, x: Tensor) -> Tensor:
        own = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in self.weights]
        return x + sum(weight.sum() for weight in own)


class Network(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(MODEL.block, dtype) for _ in range(MODEL.blocks)))
        self.rest = Block(MODEL.rest, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.blocks(x))  # type: ignore[no-any-return]


@pytest.fixture
def joined() -> Iterator[Any]:
    def join(layout: Layout, rank: int) -> None:
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.ranks)

    yield join
    distributed.destroy_process_group()
    _clear_sharding_prop_cache()  # it keeps meshes, whose groups are gone


def spread(layout: Layout, dtype: torch.dtype = torch.float32) -> Network:
    """As one does it: tensor parallelism first, then each block, then the rest."""
    sizes = {"replicas": layout.replicas, "shards": layout.shards, "tensor": layout.tensor}
    names = tuple(name for name, size in sizes.items() if size > 1)
    mesh = init_device_mesh("cpu", tuple(sizes[name] for name in names), mesh_dim_names=names)
    network = Network(dtype)
    if layout.tensor > 1:
        blocks = [*network.blocks, network.rest]
        for block, weights in zip(blocks, [*[MODEL.block] * MODEL.blocks, MODEL.rest], strict=True):
            for index, weight in enumerate(weights):
                placement = Replicate() if weight.cut is None else Shard(weight.cut)
                whole = block.weights[index].detach()
                block.weights[index] = nn.Parameter(distribute_tensor(whole, mesh["tensor"], [placement]))
    over = mesh[tuple(name for name in names if name != "tensor")]
    options: dict[str, Any] = {"mesh": over, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
    for block in network.blocks:
        fully_shard(block, **options)
    return fully_shard(network, **options)


def optimizer_of(network: Network, **options: Any) -> regkernels.optim.AdamW:
    matrices = [param for param in network.parameters() if param.dim() > 1]
    rest = [param for param in network.parameters() if param.dim() == 1]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return regkernels.optim.AdamW(groups, lr=1e-3, l1=1e-4, **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_what_a_rank_holds(layout: Layout, place: str, joined: Any) -> None:
    rank = {"first": 0, "middle": layout.ranks // 2 + 3, "last": layout.ranks - 1}[place]
    joined(layout, rank)
    shard, part = rank // layout.tensor % layout.shards, rank % layout.tensor
    network = spread(layout)
    weights = [weight for count, unit in MODEL.units for weight in count * unit]
    for param, weight in zip(network.parameters(), weights, strict=True):
        assert param.shape == weight.shape
        assert held(param).numel() == layout.held(weight, shard, part), (weight, param.placements)
    assert sum(map(layout.held, weights)) == layout.fullest(MODEL)
    assert sum(held(param).numel() for param in network.parameters()) <= layout.fullest(MODEL)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_sent(layout: Layout, dtype: torch.dtype, joined: Any) -> None:
    joined(layout, layout.ranks // 2)
    network = spread(layout, dtype)
    with Recording() as engine:
        network(torch.ones((), dtype=dtype)).backward()
    assert engine.traffic == sharding.fsdp(MODEL, layout, dtype.itemsize)
    expected = projection.messages(layout, groups=2)
    for options, traffic in (
        ({}, expected.plain),
        ({"max_grad_norm": 1.0}, expected.norm),
        ({"skip_nonfinite": True}, expected.norm),
        ({"stats": True}, expected.stats),
        ({"max_grad_norm": 1.0, "stats": True}, expected.norm + expected.stats),
    ):
        optimizer = optimizer_of(network, **options)
        optimizer.step()  # in which ranks compare their optimizers
        with Recording() as steps:
            optimizer.step()
        assert steps.traffic == traffic, options


def test_ranks_compare_their_optimizers_in_few_bytes(joined: Any) -> None:
    """In the first step; every rank receives what every other sends, so that it may not grow with the model."""
    joined(Layout(1024), 5)
    network = spread(Layout(1024))
    network(torch.ones(())).backward()
    with Recording() as first:
        optimizer_of(network).step()
    assert {sent.operation for sent in first.sent} == {"allgather_"}
    assert sum(sent.bytes for sent in first.sent) < 100


@pytest.mark.parametrize("label", projection.FORMATS)
def test_bytes_held(label: str, joined: Any) -> None:
    form, layout = projection.FORMATS[label], Layout(64)
    joined(layout, 0)
    network = spread(layout, form.dtype)
    network(torch.ones((), dtype=form.dtype)).backward()
    make = getattr(regkernels.optim, form.optimizer)
    optimizer = make(network.parameters(), param_rounding=form.rounding, state_dtype=form.state_dtype)
    optimizer.step()
    counted = 0
    for param in network.parameters():
        states = [value for value in optimizer.state[param].values() if isinstance(value, DTensor)]
        counted += sum(held(tensor).nbytes for tensor in (param, param.grad, *states))
    assert counted == layout.fullest(MODEL) * projection.bytes_held(form)
