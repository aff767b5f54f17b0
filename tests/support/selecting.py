"""Which tests run, and in which order: the tenth that `make check` takes, and the files that are begun first."""

from __future__ import annotations

import zlib
from itertools import groupby
from pathlib import Path

import pytest

from tests import ROOT

LONG = (
    "tests/triton/test_generated_code.py",
    "tests/triton/ptx/",
    "tests/distributed/",
    "tests/docs/test_gpt",
    "tests/interpreted/",
    "tests/optim/step/",
    "tests/optim/test_fixed_points.py",
    "tests/backends/",
    "tests/fuzz/",
    "tests/ops/",
    "tests/benchmarks/",
    "tests/demo/",
)
"""What takes minutes, in this order. A process takes a file at a time, and one that is begun last is waited for by all."""

LEFT_OUT = (
    "tests/triton/",
    "tests/docs/",
    "tests/distributed/",
    "tests/integrations/",
    "tests/gpu/",
    "tests/demo/",
    "tests/fuzz/",
    "tests/benchmarks/test_cases.py",
    "tests/benchmarks/test_command.py",
    "tests/ops/test_values.py",
    "tests/backends/test_choice.py",
    "tests/optim/checkpoint/test_distributed.py",
    "tests/optim/checkpoint/test_killed_runs.py",
    "tests/optim/step/test_compile.py",
    "tests/optim/step/test_generated_code.py",
    "tests/optim/test_penalised_fixed_points.py",
)
"""Of the tenth: what takes seconds however few of its tests run, as do compilers, other processes and frameworks, and what takes
a device."""


def tenth(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each file every tenth test, by a number that depends on its name alone, and at least one."""
    chosen: set[pytest.Item] = set()
    for _, of_file in groupby(items, key=_file):
        tests = sorted(of_file, key=lambda item: zlib.crc32(item.nodeid.encode()))
        chosen.update(tests[: -(-len(tests) // 10)])
    return [item for item in items if item in chosen]


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def long_first(items: list[pytest.Item]) -> list[pytest.Item]:
    def rank(item: pytest.Item) -> int:
        return next((rank for rank, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG))

    return sorted(items, key=rank)


def is_left_out(path: Path, config: pytest.Config) -> bool:
    """Whether a file that nobody asked for by name has nothing for this run: to import it takes longer than to look."""
    asked_for = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    if path.suffix != ".py" or ROOT not in path.parents or path in asked_for:
        return False
    if config.getoption("tenth"):
        return path.relative_to(ROOT).as_posix().startswith(LEFT_OUT)
    marker = config.option.markexpr
    return marker in ("interpreted", "attacks") and marker not in path.read_text(encoding="utf-8")
