"""Notes which kernels are launched."""

from __future__ import annotations

from typing import Any

import pytest


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the names of the kernels that are launched from now on, a list that grows."""
    from regkernels.backends.triton import launch as launching

    names: list[str] = []
    launch = launching.launch

    def note(kernel: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(launching, "launch", note)
    return names
