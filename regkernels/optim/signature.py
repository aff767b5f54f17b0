"""Shows the keyword arguments that all optimizers share in the signature of each, one by one, with their defaults."""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import Any, Unpack, get_type_hints

from regkernels.optim.options import DEFAULTS, Common
from regkernels.optim.penalty_keys import Penalties


def spell_out(optimizer: type) -> None:
    """Gives a class whose constructor takes ``**common: Unpack[Common]`` the signature that names what that stands for.

    ``inspect.signature``, ``help`` and editors at run time see it; type checkers read the annotation. A constructor that
    passes keyword arguments on in another way keeps its own signature.
    """
    init: Any = vars(optimizer).get("__init__")
    if init is None:
        return
    try:
        hints = get_type_hints(init)
    except NameError:  # a class of the user's, whose annotations are names that exist in a function only
        return
    given = inspect.signature(init)
    last = next((name for name, one in given.parameters.items() if one.kind is Parameter.VAR_KEYWORD), "")
    if hints.get(last) != Unpack[Common]:
        return
    own = [one.replace(annotation=hints.get(name, one.annotation)) for name, one in given.parameters.items()]
    common = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name, Parameter.empty), annotation=annotation)
        for name, annotation in get_type_hints(Common).items()
        if name not in given.parameters
    ]
    common.sort(key=lambda one: one.name in Penalties.__annotations__)  # of which there are many: last
    init.__signature__ = given.replace(parameters=[*own[:-1], *common], return_annotation=None)
