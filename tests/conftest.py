"""What every test runs under."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from regkernels import backends
from regkernels.backends import extension
from tests.support import selecting
from tests.triton.ptx import check

_PACKAGE = "regkernels"

CHECKED = check.plugin()
"""Made here: which backends there are, other files of this name ask when they are imported."""

if backends.interprets() and CHECKED is None:
    from tests.support.interpreter import make_fast

    make_fast()
    numpy.seterr(all="ignore")  # the interpreter computes with NumPy, which warns of what kernels do in silence


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tenth", action="store_true", help="of each file every tenth test, without slow ones")


def pytest_configure(config: pytest.Config) -> None:
    # Penalties of weights that are rounded to nearest are tested en masse; `tests.optim.test_effects` tests what is said of them.
    config.addinivalue_line("filterwarnings", "ignore:.* rounded to nearest:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:centered=True lets:UserWarning")
    if isinstance(CHECKED, pytest.UsageError):
        raise CHECKED
    if CHECKED is not None:
        config.pluginmanager.register(CHECKED)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return selecting.is_left_out(collection_path, config) or None


@pytest.hookimpl(trylast=True)  # after ``-m`` and ``-k``
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("tenth"):
        every, items[:] = set(items), selecting.tenth(items)
        config.hook.pytest_deselected(items=list(every.difference(items)))
    items[:] = selecting.long_first(items)


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


@pytest.fixture
def one_thread() -> None:
    """For small tensors, where waking up threads would take most of the time."""
    torch.set_num_threads(1)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """With nothing compiled yet, and nothing counted."""
    from torch._dynamo.utils import clear_compilation_metrics  # takes longer to import than most tests run

    torch._dynamo.reset()
    clear_compilation_metrics()
    yield
    torch._dynamo.reset()
