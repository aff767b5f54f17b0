"""Contenders that are not real, and a run of the command with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regkernels.__main__ import main

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks.case import Case, Contender
from benchmarks.record import Record

STREAMS = {"copy": 50.0, "update": 60.0, "read": 45.0}


def nothing() -> None:
    pass


def makers(*names: str) -> dict[str, Callable[[], Contender]]:
    return {name: lambda: Contender(nothing) for name in names}


def failing(error: BaseException) -> Callable[[], Contender]:
    def make() -> Contender:
        raise error

    return make


def crashing(error: BaseException, after: int = 0) -> Callable[[], Contender]:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error

    return lambda: Contender(run)


def absent() -> str:
    raise ModuleNotFoundError("No module named 'exotic'")


def found() -> str:
    return "1.2.3"


def bench(*arguments: str) -> int:
    return main(["bench", "--no-pictures", "--suite", "question", *arguments])


def kept(folder: Path) -> Record:
    (path,) = folder.glob("*/cpu-*-threads.json")
    return Record.load(path)


def case(name: str, contenders: dict[str, Callable[[], Contender]], **fields: Any) -> Case:
    return Case("question", name, contenders, **{"bytes_moved": 1000} | fields)
