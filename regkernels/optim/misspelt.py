"""Warns of arguments that would do nothing, though whoever gave them thinks that they do."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from regkernels.warn import warn

ELSEWHERE = {
    **dict.fromkeys(("lasso", "l_1", "L1", "l1_reg", "l1_lambda", "l1_penalty", "lambda_l1"), "l1"),
    **dict.fromkeys(("group_lasso", "l1_group"), "group_l1"),
    **dict.fromkeys(("l2", "l_2", "L2", "l2_reg", "l2_lambda", "l2_penalty", "lambda_l2"), "weight_decay = 2 * l2"),
    "ridge": "weight_decay",
    "learning_rate": "lr",
    **dict.fromkeys(
        ("grad_clip", "clip_grad", "clip_grad_norm", "clip_norm", "clipnorm", "gradient_clip_val", "gradient_clipping"),
        "max_grad_norm",
    ),
    **dict.fromkeys(
        ("regularize", "regularize_fn", "regularise_fn", "regularization"), "regularise of regkernels.param_groups"
    ),
    "nonnegative": "positive",
    "non_negative": "positive",
}
"""What other libraries call them."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """Returns what ``name`` probably stands for: another library's word, or one letter too many, too few, wrong or swapped."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    return next((candidate for candidate in known if _one_slip_apart(name, candidate)), None)


def warn_of_keys(group: Mapping[str, Any], known: Iterable[str], index: int) -> None:
    """Warns of keys that nothing reads and that look like an option of the optimizer. Others are the user's own."""
    names = {"params", *known}
    for key in group:
        intended = None if key in names or not isinstance(key, str) else meant(key, sorted(names))
        if intended is not None:
            warn(f"param group {index} has the key {key!r}, which has no effect; did you mean {intended}?")


def warn_of_overridden(strengths: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Warns of strengths that were given for all param groups, where each says 0. Looks into no tensor, which may take waiting."""
    for key, strength in strengths.items():
        values = [strength, *(group.get(key, strength) for group in groups)]
        if groups and all(isinstance(value, (int, float)) for value in values) and strength and not any(values[1:]):
            warn(
                f"{key}={strength!r} has no effect: every param group has {key}=0 of its own; give it to "
                "regkernels.param_groups, or to the groups"
            )


def given(optimizer: type, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns strengths that the user chose: those that are not what ``optimizer`` has anyway."""
    usual = inspect.signature(optimizer).parameters
    return {
        key: defaults[key] for key in ("l1", "weight_decay") if key in usual and usual[key].default is not defaults[key]
    }


def _one_slip_apart(name: str, other: str) -> bool:
    """Tells whether one letter is wrong, missing or too many, or two neighbours are swapped."""
    if len(name) == len(other):
        wrong = [i for i, (a, b) in enumerate(zip(name, other, strict=True)) if a != b]
        return len(wrong) == 1 or (
            len(wrong) == 2 and name[wrong[0] : wrong[1] + 1] == other[wrong[0] : wrong[1] + 1][::-1]
        )
    short, long = sorted((name, other), key=len)
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
