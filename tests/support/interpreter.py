"""Triton's interpreter, twice as fast."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once_per_launch() -> None:
    """Triton replaces its language by the interpreter's at each call of each device function, although it was replaced when
    the kernel was launched: half of the time goes there."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, ...]] = set()

    def patch_what_is_not(function: Any) -> Any:
        seen = tuple(any(value is lang for value in function.__globals__.values()) for lang in (tl, tl.core))
        if seen in patched:
            return None
        patched.add(seen)
        return patch(function)

    def run(self: Any, *arguments: Any, **constants: Any) -> None:
        patched.clear()
        launch(self, *arguments, **constants)

    interpreter._patch_lang = patch_what_is_not
    interpreter.GridExecutor.__call__ = run
