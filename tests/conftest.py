"""What every test runs under."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

from regkernels import backends
from regkernels.backends import extension

_PACKAGE = "regkernels"

if backends.interprets():
    from tests.support.interpreter import patch_once_per_launch

    patch_once_per_launch()
    numpy.seterr(all="ignore")  # the interpreter computes with NumPy, which warns of what kernels do in silence


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what the package gets from ``torch.empty*`` with NaN, so that an output that was not written is seen."""

    def poisoned(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = function(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            real = tensor.is_floating_point() and tensor.device.type in ("cpu", "cuda")
            if caller.partition(".")[0] == _PACKAGE and real and not torch.compiler.is_compiling():
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture(autouse=True)
def _restore_threads_and_isa() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), extension.C.isa() if extension.C is not None else None
    yield
    torch.set_num_threads(threads)
    if extension.C is not None and isa is not None:
        extension.C.set_isa(isa)
