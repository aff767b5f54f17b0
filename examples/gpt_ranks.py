"""Joins several processes for gpt.py, as torchrun starts them: each trains on its part of the batch, on a GPU of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from gpt_model import GPT
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel


class Ranks(NamedTuple):
    """Knows this process and how many there are. Whatever communicates has to be called on all of them."""

    device: torch.device
    rank: int = 0
    count: int = 1
    fsdp: bool = False

    def __str__(self) -> str:
        if self.count == 1 and not self.fsdp:
            return str(self.device)
        return f"{self.count} x {self.device.type} ({'FSDP' if self.fsdp else 'DDP'})"

    def spread(self, model: GPT) -> nn.Module:
        """Returns ``model`` as it is to be called for training: a copy on each rank (DDP), or a part of each weight (FSDP)."""
        if self.fsdp:
            mesh = init_device_mesh(self.device.type, (self.count,))
            policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # sums over many ranks lose bits in bfloat16
            for block in model.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            return fully_shard(model, mesh=mesh, mp_policy=policy)
        if self.count > 1:
            return DistributedDataParallel(model, gradient_as_bucket_view=True)
        return model

    def part(self, rows: Tensor) -> Tensor:
        """Returns the rows of this rank."""
        return rows[self.rank :: self.count]

    def total(self, values: Tensor) -> Tensor:
        """Sums over ranks."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """Returns the largest of all ranks. On the host, so that no GPU is waited for."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def gather(self, value: Any) -> list[Any]:
        """Returns what each rank has passed."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def joined(device: str, batch_size: int, *, fsdp: bool) -> Iterator[Ranks]:
    """Joins the ranks that torchrun has started, or takes this process alone. Only rank 0 prints."""
    try:
        own = torch.device(device)
    except RuntimeError as error:
        sys.exit(f"error: --device {device}: {error}")
    if not dist.is_torchelastic_launched():
        if fsdp:
            sys.exit("error: --fsdp needs torchrun: torchrun --nproc-per-node 2 examples/gpt.py --fsdp")
        yield Ranks(own)
        return
    rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if batch_size % count:
        sys.exit(f"error: --batch-size {batch_size} cannot be divided among {count} processes")
    if own.type == "cuda":
        if own.index is not None:
            sys.exit(f"error: --device {device} is one GPU for {count} processes; leave the number out")
        if local >= torch.cuda.device_count():
            sys.exit(f"error: no GPU for process {local} of this machine, which has {torch.cuda.device_count()}")
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    with ExitStack() as stack:
        if rank > 0:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield Ranks(own, rank, count, fsdp)
        except SystemExit:
            dist.destroy_process_group()
            raise
        # After any other error the others may wait for this rank: torchrun ends them, leaving in good order might wait, too.
        dist.destroy_process_group()


def whole(value: Any) -> Any:
    """Returns ``value`` with the tensors that are spread over ranks in one piece, in memory of their own; communicates."""
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if not isinstance(value, DTensor):
        return value
    if value.dtype == torch.int16:  # remainders; no backend sends this type, so as one of the same size
        return value.view(torch.float16).full_tensor().view(torch.int16)
    return value.full_tensor()


def spread_state(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Cuts an optimizer's ``state_dict`` in one piece into the parts that ``optimizer`` has of its parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def part(value: Any, param: Tensor) -> Any:
        if not isinstance(param, DTensor) or not isinstance(value, Tensor) or value.shape != param.shape:
            return value
        value = value.to(param.device)
        return distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)

    state = {
        index: {name: part(value, params[index]) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
