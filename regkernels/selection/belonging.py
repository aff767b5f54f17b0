"""Refuses options that nothing would read: of a penalty that is not asked for, and misspelt ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from regkernels.optim import Optimizer
from regkernels.optim.misspelt import meant
from regkernels.optim.penalty_keys import Penalties
from regkernels.reference.family import FAMILY

_BY_GROUPS = ("group_l1", "max_norm", "unit_norm")
OWNERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("group_dim", "group_size", "group_weight"), _BY_GROUPS),
    **{f"{key}_{of.shape.name}": (key,) for key, of in FAMILY.items() if of.shape is not None},
    "l1_weights": ("l1",),
}
"""Keys of a param group, and those that they say something of."""


def check_belong(options: Mapping[str, Any], keys: Collection[str], name: str) -> None:
    """Raises for an option of a penalty that is asked for neither by ``keys`` nor by the options.

    Args:
        name: what options are called in the error, with a verb: "options have".
    """
    for option in options:
        owners = OWNERS.get(option)
        if owners is not None and not {*keys, *options} & {*owners}:
            asked = ", ".join(keys)
            given = f"{option}={options[option]!r}" if isinstance(options[option], (int, float, str)) else option
            raise ValueError(
                f"{name} {given}, which says something of {' or '.join(owners)}, and the penalty is {asked}: leave it "
                f"out, or choose that key"
            )


def keys_known_to(optimizer: torch.optim.Optimizer, keys: Iterable[str]) -> set[str]:
    """Returns the keys of a param group that an optimizer reads, among them ``keys``.

    Raises:
        ValueError: where it does not know one of these, the penalties, and so would not penalise.
    """
    known = {*optimizer.defaults, *(Penalties.__annotations__ if isinstance(optimizer, Optimizer) else ())}
    for key in keys:
        if key not in known:
            raise ValueError(
                f"key {key!r} is none of a param group of {type(optimizer).__module__}.{type(optimizer).__name__}; those of "
                "regkernels.optim know l1, weight_decay, group_l1 and the other penalties"
            )
    return known


def check_known(options: Iterable[str], known: Iterable[str], name: str, arguments: Iterable[str] = ()) -> None:
    """Raises for an option that a param group does not have, with what it probably stands for.

    Args:
        known: what a param group may have.
        name: what comes before the option in the error.
        arguments: what else may have been meant.
    """
    names = sorted(known)
    for option in options:
        if option not in names:
            intended = meant(option, [*arguments, *names])
            hint = f"did you mean {intended}?" if intended else f"keys of a param group are {', '.join(names)}"
            raise ValueError(f"{name}{option!r} is not known; {hint}")
