"""Refuses keys of param groups that would do nothing, though whoever gave them thinks that they do."""

from __future__ import annotations

from collections.abc import Iterable

from regkernels.optim.misspelt import meant
from regkernels.optim.options import Common
from regkernels.optim.penalty_keys import Penalties

OF_THE_OPTIMIZER = tuple(name for name in Common.__annotations__ if name not in Penalties.__annotations__)
"""Arguments that belong to no param group."""

OURS = tuple(
    name for name in (*Penalties.__annotations__, "l1_mode", "weight_decay", "weight_decay_mode") if len(name) > 2
)
"""Keys that are long enough, and rare enough elsewhere, for what is one letter apart to be a slip."""


def refuse_keys(keys: Iterable[object], own: Iterable[str] = (), of: str = "a param group") -> None:
    """Raises for a key that belongs elsewhere, that others call so, or that is a slip. Any further key is the user's own.

    ``own``: of the optimizer, which may have options of any name; ``of``: whose keys they are, for the message.
    """
    known = {*own, *Penalties.__annotations__}
    for key in keys:
        if key in known or not isinstance(key, str):
            continue
        if key in OF_THE_OPTIMIZER:
            raise TypeError(
                f"{key!r} is an argument of the optimizer, not a key of {of}: optim.AdamW(groups, {key}=...)"
            )
        if key == "regularise":
            raise TypeError(f"'regularise' is an argument of regkernels.param_groups, not a key of {of}")
        intended = meant(key, OURS)
        if intended is not None:
            belongs = " (an argument of the optimizer)" if intended in OF_THE_OPTIMIZER else ""
            raise TypeError(f"{key!r} is no key of {of}; did you mean {intended}{belongs}?")
