"""Recognises parameters that torch.distributed.fsdp.FullyShardedDataParallel has flattened: they have lost their dimensions."""

from __future__ import annotations

from torch import Tensor

BECAUSE = "was flattened by FullyShardedDataParallel"
REMEDY = (
    "make the param groups before the model is wrapped, with use_orig_params=True, or use "
    "torch.distributed.fsdp.fully_shard, which keeps dimensions"
)


def is_flattened(param: Tensor) -> bool:
    """Tells whether a parameter is a flat one, or one of those that ``use_orig_params=True`` makes views of it."""
    return bool(getattr(param, "_fsdp_flattened", False))  # which torch sets on both


def refuse_groups(param: Tensor, key: str, name: str) -> None:
    """Raises where a parameter is flattened and ``key`` acts on its rows, columns or other groups."""
    if is_flattened(param):
        raise ValueError(
            f"{name} {BECAUSE}, so it has no rows any more, and {key} would take each element for one; use "
            "torch.distributed.fsdp.fully_shard, which keeps dimensions, or a penalty of single elements such as l1"
        )
