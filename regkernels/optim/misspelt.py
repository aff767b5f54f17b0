"""Warns of arguments that would do nothing, though whoever gave them thinks that they do."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ELSEWHERE = {
    "lasso": "l1",
    "group_lasso": "group_l1",
    "l2": "weight_decay = 2 * l2",
    "ridge": "weight_decay",
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
    """Warns of keys that nothing reads and that look like ones that something would. Others are the user's own."""
    names = {"params", *known}
    for key in group:
        intended = None if key in names or not isinstance(key, str) else meant(key, sorted(names))
        if intended is not None:
            _warn(f"param group {index} has the key {key!r}, which has no effect; did you mean {intended}?")


def warn_of_overridden(strengths: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Warns of strengths that were given for all param groups, where each says 0. Looks into no tensor, which may take waiting."""
    for key, strength in strengths.items():
        values = [strength, *(group.get(key, strength) for group in groups)]
        if groups and all(isinstance(value, (int, float)) for value in values) and strength and not any(values[1:]):
            _warn(
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


def _warn(text: str) -> None:
    """Warns in the line of the user's that called, however many constructors are in between."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] in ("regkernels", "torch"):
        level += 1
    warnings.warn(text, stacklevel=level + 1)
