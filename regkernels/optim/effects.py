"""Says what the keys of a param group do to its weights: whether they make zeros, and whether rounding undoes what they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from regkernels.optim import penalty_keys
from regkernels.optim.penalty_keys import is_active
from regkernels.reference.family import FAMILY
from regkernels.warn import warn


def makes_zeros(group: Mapping[str, Any]) -> list[str]:
    """Lists the keys that can make all weights of a row exactly zero."""
    keys = [key for key, penalty in FAMILY.items() if penalty.kink_at_zero]
    found = [key for key in ("l1", *keys, "group_l1") if is_active(group, key)] + _proximal_decay(group)
    box = group.get("box")
    if group.get("positive"):
        found.append("positive")
    if box is not None and (box[0] >= 0 or box[1] <= 0):
        found.append("box")
    return found


def shrinks_little_by_little(group: Mapping[str, Any]) -> list[str]:
    """Lists the keys that shrink weights after the step, by an amount that rounding may undo each time.

    Not what is in the gradient, which has its part in every step; nor what jumps to zero, or keeps to bounds.
    """
    keys = [key for key, penalty in FAMILY.items() if not penalty.formulas.flat]
    found = [key for key in (*keys, "group_l1") if is_active(group, key)] + _proximal_decay(group)
    return ["l1", *found] if is_active(group, "l1") and group.get("l1_mode") != "subgradient" else found


def warn_of_rounding(
    group: Mapping[str, Any], rounding: str, earlier: Iterable[Mapping[str, Any]], remedy: str
) -> None:
    """Warns where rounding to nearest loses most of what shrinks the weights of ``group``; once: not if ``earlier`` ones had it.

    ``remedy``: what to do about it.
    """
    lost = _lost(group, rounding)
    if lost is None or any(_lost(other, rounding) for other in earlier):
        return
    dtype, key = lost
    warn(
        f"{key} has little effect on weights of {dtype} that are rounded to nearest: what a step takes from a weight is "
        f"mostly less than half of its last digit, and lost each time; {remedy}"
    )


def warn_of_no_limit(group: Mapping[str, Any]) -> None:
    """Warns where weights without gradients are erased in one step, though a limit was not taken away."""
    keys = penalty_keys.needs_metric(group)
    if group.get("centered") and keys and group.get("shrink_limit") is not None:
        warn(
            f"centered=True lets {keys[0]} erase weights whose gradients do not vary, such as those that have none, in one step: "
            "shrink_limit cannot hold there without changing what is solved; leave centered out, or pass shrink_limit=None to say that "
            "it is known"
        )


def _lost(group: Mapping[str, Any], rounding: str) -> tuple[torch.dtype, str] | None:
    """Returns the type of a weight, and the key whose effect it loses; None where there is none."""
    dtypes = [p.dtype for p in group["params"] if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    keys = shrinks_little_by_little(group) if dtypes and rounding == "nearest" else []
    return (dtypes[0], keys[0]) if keys else None


def _proximal_decay(group: Mapping[str, Any]) -> list[str]:
    is_asked = group.get("weight_decay_mode") == "prox" and is_active(group, "weight_decay")
    return ["weight_decay"] if is_asked else []
