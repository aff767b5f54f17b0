"""Runs the cases of a quick run by ``pytest benchmarks/``: one contender at a time, in pytest-benchmark's tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.case import Case, Scope
from benchmarks.measure import forget
from benchmarks.peers import Unsupported

ROUNDS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if importlib.util.find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark() -> None:
        pytest.skip("pytest-benchmark is not installed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "timed" not in metafunc.fixturenames:
        return
    pairs = [(case, peer) for case in metafunc.module.cases(Scope(DEVICE, quick=True)) for peer in case.contenders]
    names = [f"{case.name}-{peer}" for case, peer in pairs]
    metafunc.parametrize("timed", pairs, ids=names, indirect=True)


@pytest.fixture
def timed(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[dict[str, Any]]:
    """Yields what to hand to ``benchmark.pedantic``. A table per case."""
    case, peer = request.param
    assert isinstance(case, Case)
    benchmark.group = f"{case.suite}: {case.name}"
    torch.manual_seed(0)
    try:
        contender = case.contenders[peer]()
    except (Unsupported, ImportError) as reason:
        pytest.skip(str(reason))

    def run() -> None:
        contender.run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def prepare() -> None:  # pytest-benchmark takes what is returned for arguments
        if contender.prepare is not None:
            contender.prepare()

    yield {"target": run, "setup": prepare, "rounds": ROUNDS, "warmup_rounds": 1}
    forget()
