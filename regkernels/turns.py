"""Lets threads that step one optimizer take turns, and refuses a step within a step.

What a step looks at while it makes up its table of addresses is that of one step: another one of the same thread, which a
hyper-parameter or a gradient that runs code may call for, would see half of it done and change what the other goes on with.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

_made: WeakSet[Any] = WeakSet()


def lock() -> Any:
    """Makes a lock to be held during a step. In a child it is free: the thread that had it is not there to give it back."""
    made = threading.RLock()  # not a plain one, for which its own thread would wait for ever
    _made.add(made)
    return made


def refuse_within(step: Callable[..., Any], owner: object, lock: Any) -> None:
    """Raises RuntimeError where this thread, which holds ``lock``, is within ``owner.step`` already. An interrupt between taking the lock and
    the step has left it held for nothing: then it is given back."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code is step.__code__ and frame.f_locals.get("self") is owner:
            raise RuntimeError(
                "step() was called by something that this very step was looking at (a hyper-parameter, a gradient): call it from a "
                "closure or from a hook of the optimizer, which run before and after"
            )
        frame = frame.f_back
    while lock._is_owned():
        lock.release()


def _free_all() -> None:
    for made in _made:
        made._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)
