"""Runs the tests marked ``interpreted`` on compiled PTX, in the place of Triton's interpreter: ``REGKERNELS_CHECK=ptx``, or
``ptx:sm_100`` for another target than the usual one, with ``REGKERNELS_BACKEND=triton``.

Triton is imported when first needed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regkernels import backends
from regkernels.backends import gpu

if TYPE_CHECKING:
    from tests.triton.ptx.device import RunningDevice

VARIABLE = "REGKERNELS_CHECK"
USUAL = "sm_90"
NEWEST = (3, 8)
"""Of Triton's versions: what a driver has to be is no promise of Triton's, so a newer one has to be tried first."""


def asked_for() -> bool:
    return VARIABLE in os.environ


def target() -> str:
    """Returns the target that was asked for; raises `pytest.UsageError`, one line with the remedy, where nothing can be run."""
    value = os.environ[VARIABLE]
    kind, _, name = value.partition(":")
    if kind != "ptx" or value == "ptx:":
        raise pytest.UsageError(
            f"{VARIABLE} must be 'ptx', or 'ptx:' and a target such as 'ptx:{USUAL}', got {value!r}"
        )
    if os.environ.get("TRITON_INTERPRET"):
        raise pytest.UsageError(
            f"{VARIABLE}={value} compiles, and TRITON_INTERPRET makes Triton interpret: unset one of them"
        )
    if os.environ.get(backends.VARIABLE) != "triton":
        raise pytest.UsageError(f"{VARIABLE}={value} runs the Triton kernels: set {backends.VARIABLE}=triton too")
    if reason := gpu.missing_because() or _too_new():
        raise pytest.UsageError(f"{VARIABLE}={value} needs Triton's compiler, but {reason}")
    from regkernels.backends.triton.architectures import ARCHITECTURES

    known = [architecture for architecture in ARCHITECTURES if architecture.startswith("sm_")]
    if (name or USUAL) not in known:
        raise pytest.UsageError(f"{VARIABLE} knows the targets {', '.join(known)}, whose kernels are PTX, got {name!r}")
    return name or USUAL


def _too_new() -> str | None:
    found = tuple(map(int, re.findall(r"\d+", gpu.version())[:2]))
    if found <= NEWEST:
        return None
    newest = ".".join(map(str, NEWEST))
    return (
        f"{gpu.version()} is newer than {newest}, the newest that was tried: `pip install 'triton<={newest}.*'`, or raise NEWEST "
        "in tests/triton/ptx/check.py and see"
    )


_entered = ExitStack()
_FOLDER = f"{VARIABLE}_COUNTS"
"""The variable by which other processes, such as ranks, know where to leave what they have launched."""


def enter() -> RunningDevice:
    """Makes this process's CPU tensors those of a device that runs PTX."""
    architecture = target()
    from tests.triton.ptx.device import running

    return _entered.enter_context(running(architecture))


@contextmanager
def entered() -> Iterator[None]:
    """Does so within the block, in a process that tests have started, if it was asked for."""
    if not asked_for():
        yield
        return
    device = enter()
    yield
    if folder := os.environ.get(_FOLDER):
        Path(folder, str(os.getpid())).write_text(json.dumps(device.counts))


class Plugin:
    """Counts what is launched, and fails a run that launched nothing: tests that do not know of the device would pass."""

    def __init__(self) -> None:
        self._device = enter()
        self._launches: Counter[str] = Counter()
        self._ran = 0
        self._folder = tempfile.TemporaryDirectory(prefix="launches-")
        os.environ[_FOLDER] = self._folder.name

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._ran += report.when == "call"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._launches.update(self._device.counts)
        for left in Path(self._folder.name).iterdir():
            self._launches.update(json.loads(left.read_text()))
        if hasattr(session.config, "workeroutput"):  # in a process of pytest-xdist
            session.config.workeroutput[VARIABLE] = dict(self._launches)
        elif self._ran and not self._launches and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._launches.update(getattr(node, "workeroutput", {}).get(VARIABLE, {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        count = sum(self._launches.values())
        kernels = ", ".join(f"{name} {number}" for name, number in sorted(self._launches.items()))
        terminalreporter.write_line(f"PTX for {self._device.architecture}: {count} launches ({kernels})", bold=True)
        if self._ran and not count:
            terminalreporter.write_line(f"{VARIABLE} is set, but no kernel was launched on PTX", red=True)

    def pytest_unconfigure(self) -> None:
        _entered.close()
        self._folder.cleanup()


def plugin() -> Plugin | pytest.UsageError | None:
    """Returns what pytest is to register, or to refuse with; None where nothing was asked for."""
    try:
        return Plugin() if asked_for() else None
    except pytest.UsageError as refusal:
        return refusal
