"""Marks functions that ``torch.compile`` is to call, not to trace."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_SKIP: Any = None  # this frame and those below it
try:
    from torch._C._dynamo import eval_frame as _frames

    _SKIP = _frames._FrameExecStrategy(_frames._FrameAction.SKIP, _frames._FrameAction.SKIP)
except (ImportError, AttributeError):  # pragma: no cover  (an interface of torch's own, which may change)
    pass

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_of_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns a copy of ``function`` that a compiled program calls as it is, between two of its graphs, with all that it calls.

    For what works on memory addresses, which do not exist while a program is traced, and for what launches kernels.
    Without it the compiler traces a step in pieces, takes numbers that change in every step for constants, and compiles
    anew until it gives up.

    ``torch.compiler.disable`` does the same with a wrapper, which costs a microsecond in programs that compile nothing.
    This is a mark at the code object, which costs nothing there.
    """
    if _SKIP is None:  # pragma: no cover
        return torch._disable_dynamo(function)  # type: ignore[attr-defined, no-any-return]
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"function must be a Python function, got {type(function).__name__}")
    # Code of its own: decorated functions share that of the decorator, which others use, too.
    copy: Any = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, closure=function.__closure__
    )
    functools.update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__dict__.update(function.__dict__)
    copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    _frames.set_code_exec_strategy(copy.__code__, _SKIP)
    # Found where a call is about to be traced into; the strategy above is for the call that then takes place.
    copy._torchdynamo_disable = True
    copy._torchdynamo_disable_msg = "it works on memory addresses; for fullgraph=True, compile the loss alone"
    return copy  # type: ignore[no-any-return]


def is_outside_of_graphs(function: Any) -> bool:
    return getattr(function, "_torchdynamo_disable", False) is True


def keep_step_outside_of_graphs(optimizer_class: Any) -> None:
    """Replaces the step of a class of optimizers, again after torch has put a step of its own around theirs."""
    if not is_outside_of_graphs(optimizer_class.step):
        optimizer_class.step = outside_of_graphs(optimizer_class.step)
