"""Refuses what is spread over ranks, where each rank would have to have all of it."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from torch import nn

from regkernels.distributed.shards import is_dtensor, splits_groups, words


def check_whole(tensor: object, name: str, remedy: str) -> None:
    """Raises TypeError for a `DTensor`."""
    if is_dtensor(tensor):
        raise TypeError(f"{name} is a DTensor with placements {words(tensor)}, of which this rank has a part; {remedy}")


def check_whole_model(model: object, remedy: str) -> None:
    """Raises TypeError for a module with `DTensor`s, or with modules to which `fully_shard` was applied.

    The latter have plain parameters between a forward and a backward pass, whose memory is FSDP's.
    """
    if not isinstance(model, nn.Module):
        return
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded_classes = () if fsdp is None else (fsdp.FSDPModule,)
    for name, module in model.named_modules() if sharded_classes else ():
        if isinstance(module, sharded_classes):
            raise TypeError(f"{name or 'the model'} is spread over ranks by fully_shard; {remedy}")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        check_whole(tensor, name, remedy)


def check_whole_groups(tensor: Any, dim: int | str, size: int, name: str) -> None:
    """Raises where groups are cut, and what is to be done takes whole ones."""
    if splits_groups(tensor, dim, size):
        raise ValueError(
            f"{name} is a DTensor with placements {words(tensor)}, which cut its groups (dim={dim!r}, size={size}): no rank "
            f"has a whole one. Redistribute it so that it is cut along the dimension of its groups alone, at a multiple of "
            f"size, or pass {name}.full_tensor()"
        )
