"""Runs that are saved in one world and go on in another: optimizers, layouts and forms of checkpoints as data.

Gradients are given, not computed: the same numbers in every layout, so that the whole run is elementwise and must end with
the same bits wherever it was interrupted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint, get_rank, get_world_size, new_group
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from regkernels import optim

BEFORE, AFTER = range(4), range(4, 7)
MODULES = {"ours": optim, "theirs": torch.optim}


class Case(NamedTuple):
    """A run: what is trained, in which world and layout it is saved, in which form, and where it goes on."""

    kind: str
    options: Mapping[str, Any] = {}
    dtype: torch.dtype = torch.float32
    saved: tuple[int, str] = (2, "fsdp")
    form: str = (
        "nested"  # "flattened", "full" and "broadcast" are options of torch's functions; "direct": without these
    )
    loaded: tuple[tuple[int, str], ...] = ((1, "plain"), (3, "fsdp"), (4, "hsdp"))
    second: tuple[str, Mapping[str, Any]] | None = None  # another optimizer, for the vectors
    weighted: bool = False  # with l1_weights
    asynchronous: bool = False
    backward: bool = False  # gradients of a loss on other data on each rank
    module: tuple[str, str] = ("ours", "ours")  # where the optimizer is from that saves, and that goes on


class Model(nn.Module):
    """Shapes that no number of ranks divides, and some that leave ranks without anything."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up = nn.Linear(5, 11)
        self.scale = nn.Parameter(torch.randn(1))
        self.down = nn.Linear(11, 3)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)) * self.scale)


def spread(model: nn.Module, layout: str) -> nn.Module:
    ranks = get_world_size() if layout != "plain" else 1
    match layout:
        case "fsdp":
            mesh = init_device_mesh("cpu", (ranks,))
            fully_shard(model.up, mesh=mesh)
            fully_shard(model, mesh=mesh)
        case "hsdp":
            fully_shard(model, mesh=init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "shards")))
        case "tp" | "fsdp+tp":
            sizes = (1, ranks) if layout == "tp" else (ranks // 2, 2)
            mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))
            parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
            if layout == "fsdp+tp":
                fully_shard(model, mesh=mesh["dp"])
        case "ddp":
            return nn.parallel.DistributedDataParallel(model)
    return model


class Run:
    def __init__(self, case: Case, layout: str, *, resumed: bool = False) -> None:
        """``resumed``: begins with other weights."""
        self.case = case
        self.model = spread(Model(case.dtype, 4 if resumed else 3), layout)
        self.names = {param: name.removeprefix("module.") for name, param in self.model.named_parameters()}
        self.optimizers = self._optimizers(MODULES[case.module[resumed]], 4 if resumed else 3)
        self.schedulers = [torch.optim.lr_scheduler.StepLR(one, 3, 0.5) for one in self.optimizers]

    def _optimizers(self, module: Any, seed: int) -> list[Any]:
        case = self.case
        matrices = {"params": [param for param in self.names if param.dim() > 1]}
        vectors = {"params": [param for param in self.names if param.dim() < 2], "lr": 0.05}
        if case.module == ("ours", "ours"):
            matrices.update(l1=1e-2, weight_decay=0.01)
        if case.weighted:
            weights = [given(f"l1 {self.names[param]}", param, seed).abs() for param in matrices["params"]]
            matrices["l1_weights"] = [part_of(*pair) for pair in zip(weights, matrices["params"], strict=True)]
        options = {"lr": 0.02, **case.options}
        if case.second is None:
            return [getattr(module, case.kind)([matrices, vectors], **options)]
        kind, others = case.second
        return [getattr(module, case.kind)([matrices], **options), getattr(module, kind)([vectors], **others)]

    def train(self, steps: Iterable[int]) -> Run:
        for step in steps:
            if self.case.backward:
                torch.manual_seed(100 * step + get_rank())
                self.model(torch.randn(4, 5)).square().sum().backward()
            else:
                for param, name in self.names.items():
                    param.grad = part_of(given(name, param, step), param)
            for stepping in (*self.optimizers, *self.schedulers):
                stepping.step()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        return self

    # --- checkpoints ---

    @property
    def options(self) -> sharded.StateDictOptions:
        full = self.case.form in ("full", "broadcast")
        return sharded.StateDictOptions(
            flatten_optimizer_state_dict=self.case.form == "flattened", full_state_dict=full, cpu_offload=full
        )

    def packed(self) -> dict[str, Any]:
        if self.case.form == "direct":
            model, optimizer = self.model.state_dict(), self.optimizers[0].state_dict()
        else:
            model, optimizer = sharded.get_state_dict(self.model, self.optimizers, options=self.options)
        schedulers = {str(i): one.state_dict() for i, one in enumerate(self.schedulers)}
        return {"model": model, "optimizer": optimizer, "schedulers": schedulers}

    def save(self, folder: Path) -> Any:
        """What is to be waited for where the checkpoint is written while training goes on."""
        if self.case.form in ("nested", "flattened"):
            if not self.case.asynchronous:
                return checkpoint.save(self.packed(), checkpoint_id=folder)
            # With messages of its own: those of training would get in between.
            return checkpoint.async_save(self.packed(), checkpoint_id=folder, process_group=new_group(backend="gloo"))
        folder.mkdir(exist_ok=True)
        packed = self.packed()
        if self.case.form == "direct" or get_rank() == 0:
            torch.save(packed, folder / f"{get_rank()}.pt")
        return None

    def load(self, folder: Path) -> Run:
        form, options = self.case.form, self.options
        if form == "direct":
            packed = torch.load(folder / f"{get_rank()}.pt", weights_only=True)
            self.model.load_state_dict(packed["model"])
            self.optimizers[0].load_state_dict(packed["optimizer"])
        else:
            if form in ("nested", "flattened"):
                packed = self.packed()
                # Another optimizer has other keys in its groups.
                planner = checkpoint.DefaultLoadPlanner(allow_partial_load=self.case.module != ("ours", "ours"))
                checkpoint.load(packed, checkpoint_id=folder, planner=planner)
            else:
                packed = torch.load(folder / "0.pt", weights_only=True)
                options.broadcast_from_rank0 = form == "broadcast"
                if form == "broadcast" and get_rank():
                    packed |= {"model": {}, "optimizer": {}}
            # set_state_dict leaves out the model where its part is empty, as it is to be on the other ranks.
            sharded.set_model_state_dict(self.model, packed["model"], options=options)
            sharded.set_optimizer_state_dict(self.model, self.optimizers, packed["optimizer"], options=options)
        for i, scheduler in enumerate(self.schedulers):
            scheduler.load_state_dict(packed["schedulers"][str(i)])
        return self

    def result(self) -> dict[str, Any]:
        """Weights, states and hyper-parameters, in whole."""
        found: dict[str, Any] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                options = {key: whole(value) for key, value in group.items() if key not in ("params", "param_names")}
                for param in group["params"]:
                    states = {key: whole(value) for key, value in sorted(optimizer.state[param].items())}
                    found[self.names[param]] = {"weight": whole(param), "options": options, **states}
        return found


def given(name: str, param: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    return torch.randn(param.shape, generator=generator).to(param.dtype)


def part_of(tensor: Tensor, like: Any) -> Tensor:
    """What ``like`` holds of it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Any) -> Any:
    """Of a tensor a copy in one piece; lists become tuples, which some forms of state dicts make lists of."""
    if isinstance(value, (list, tuple)):
        return tuple(whole(item) for item in value)
    if isinstance(value, DTensor):
        wide = value.to(torch.int32) if value.dtype == torch.int16 else value  # gloo sends no int16
        value = wide.full_tensor().to(value.dtype)
    return value.detach().clone() if isinstance(value, Tensor) else value


# --- what ranks run ---


def save(rank: int, folder: Path, cases: Mapping[str, Case]) -> dict[str, Any]:
    """Saves on the way; returns how the runs ended."""
    ended = {}
    for name, case in cases.items():
        run = Run(case, case.saved[1]).train(BEFORE)
        written = run.save(folder / name)
        ended[name] = run.train(AFTER).result()
        if case.asynchronous:
            written.result()
    return ended


def resume(rank: int, folder: Path, cases: Mapping[str, tuple[Case, str]]) -> dict[str, Any]:
    """``cases``: each with a layout."""
    return {
        name: Run(case, layout, resumed=True).load(folder / name).train(AFTER).result()
        for name, (case, layout) in cases.items()
    }
