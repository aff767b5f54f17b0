"""Refuses keys of param groups that would do nothing, though whoever gave them thinks that they do."""

from __future__ import annotations

from collections.abc import Iterable

from regkernels.optim.misspelt import meant
from regkernels.optim.options import ARGUMENTS, Common

KEYS = tuple(name for name in Common.__annotations__ if name not in ARGUMENTS)
"""Keys that a param group of every optimizer may have."""

OURS = tuple(name for name in (*KEYS, "l1_mode", "weight_decay", "weight_decay_mode") if len(name) > 2)
"""Keys that are long enough, and rare enough elsewhere, for what is one letter apart to be a slip."""

OF_PARAM_GROUPS = ("embeddings", "regularise")
"""Arguments of `regkernels.param_groups`, which are keys of nothing."""


def refuse_keys(keys: Iterable[object], own: Iterable[str] = (), of: str = "a param group") -> None:
    """Raises for a key that belongs elsewhere, that others call so, or that is a slip. Any further key is the user's own.

    ``own``: of the optimizer, which may have options of any name; ``of``: whose keys they are, for the message.
    """
    known = {*own, *KEYS}
    for key in keys:
        if key in known or not isinstance(key, str):
            continue
        if key in ARGUMENTS:
            raise TypeError(
                f"{key!r} is an argument of the optimizer, not a key of {of}: optim.AdamW(groups, {key}=...)"
            )
        if key in OF_PARAM_GROUPS:
            raise TypeError(f"{key!r} is an argument of regkernels.param_groups, not a key of {of}")
        intended = meant(key, (*OURS, *OF_PARAM_GROUPS))
        if intended is not None:
            belongs = " (an argument of the optimizer)" if intended in ARGUMENTS else ""
            belongs = " (an argument of regkernels.param_groups)" if intended in OF_PARAM_GROUPS else belongs
            raise TypeError(f"{key!r} is no key of {of}; did you mean {intended}{belongs}?")
