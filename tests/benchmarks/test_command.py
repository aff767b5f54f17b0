"""``python -m regkernels bench``: suites that are not real, so that it takes seconds; the real ones are tested elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from regkernels.__main__ import main

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks import command, peers, progress, record, room, running, shapes, suites
from benchmarks.case import Case, Contender, Scope
from benchmarks.measure import Plan
from benchmarks.peers import Peer, Unsupported
from benchmarks.record import LeftOut, Record
from tests.benchmarks.contenders import STREAMS, absent, bench, case, crashing, failing, found, kept, makers, nothing


@pytest.fixture(autouse=True)
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the one suite says its cases are: exchanged by tests. Also what it was asked for."""
    said: dict[str, Any] = {"cases": []}

    def cases(scope: Scope) -> list[Case]:
        said["scope"] = scope
        return said["cases"]

    module = ModuleType("benchmarks.bench_question", "How long does nothing take?")
    module.cases = cases  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.bench_question", module)
    monkeypatch.setattr(suites, "SUITES", ("question", "missing"))
    monkeypatch.setattr(shapes, "LISTS", {"small": lambda: [(2, 3), (4,)], "large": lambda: [(9,)]})
    known = {"torch fused": found, "recipe, torch fused": found, "regkernels": found, "exotic": absent}
    monkeypatch.setattr(
        peers, "PEERS", {name: Peer(name, find, lambda task, params: nothing) for name, find in known.items()}
    )
    monkeypatch.setattr(running, "machine_streams", lambda device, streams=(): STREAMS)
    monkeypatch.setattr(progress, "FULL", Plan(seconds=0.01, least=2, most=3, burst=2))
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    yield said
    torch.set_num_threads(threads)


# --- what is measured ---


def test_rows_go_into_tables_and_a_record(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite["cases"] = [
        case("first", makers("torch fused", "regkernels")),
        case("second", makers("regkernels", "exotic")),
    ]
    assert bench("--output", str(tmp_path / "mine"), "--threads", "1") == 0
    found = kept(tmp_path / "mine")
    keys = [(row.case, row.peer) for row in found.rows]
    assert keys == [("first", "torch fused"), ("first", "regkernels"), ("second", "regkernels")]
    assert found.threads == 1 and found.streams_gb_per_s == STREAMS
    assert found.versions["torch fused"] == "1.2.3"
    assert found.left_out == [LeftOut("", "", "exotic", "No module named 'exotic'")]
    printed = capsys.readouterr().out
    for text in (
        "question: first",
        "question: second",
        "not here: exotic: No module",
        "% of stream",
        "cpu-1-threads.json",
    ):
        assert text in printed, text
    assert not list(tmp_path.glob("**/*.unfinished.json"))


def test_a_part_does_not_replace_the_record_of_the_whole(suite: Any, tmp_path: Path) -> None:
    suite["cases"] = [case("first", makers("regkernels"))]
    assert bench() == 0
    assert kept(tmp_path / "scratch").rows and not (tmp_path / "results").exists()
    suite["cases"] = [case("first", makers("regkernels"))]
    assert main(["bench", "--no-pictures"]) == 0
    assert kept(tmp_path / "results").left_out[0].suite == "missing"


def test_options_reach_the_suites(suite: Any) -> None:
    suite["cases"] = [case("first", makers("regkernels"))]
    assert bench("--quick", "--shapes", "LARGE", "--shapes", "small", "--peers", "regkernels,recipe, torch fused,") == 0
    assert suite["scope"] == Scope("cpu", True, ("small", "large"), ("recipe, torch fused", "regkernels"))
    suite["cases"] = [case("first", makers("regkernels"))]
    assert bench("--peers", "recipe") == 0
    assert suite["scope"].peers == ("recipe, torch fused",)


@pytest.mark.parametrize(
    ("option", "valid"),
    [
        ("--suite", "there are: question; missing"),
        ("--shapes", "there are: small; large"),
        ("--peers", "there are: torch fused; recipe, torch fused; regkernels; exotic; torch eager"),
    ],
)
def test_unknown_names_list_the_valid_ones(option: str, valid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(option, "regkernel,question2") == 2
    error = capsys.readouterr().err
    assert "'regkernel', 'question2'" in error and valid in error


# --- what goes wrong ---


def test_interrupted_run_keeps_rows(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite["cases"] = [case("old", makers("regkernels"))]
    assert bench() == 0
    suite["cases"] = [
        case("done", makers("regkernels")),
        case("stopped", {"regkernels": crashing(KeyboardInterrupt())}),
    ]
    assert bench() == 130
    (path,) = tmp_path.glob("scratch/*/*.unfinished.json")
    assert [row.case for row in Record.load(path).rows] == ["done"]
    assert str(path) in capsys.readouterr().out
    assert [row.case for row in kept(tmp_path / "scratch").rows] == ["old"]


@pytest.mark.parametrize("after", [0, 4])
def test_who_crashes_is_left_out_and_named(
    after: int, suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders = makers("torch fused", "regkernels") | {
        "crashes": crashing(RuntimeError("illegal access\nmuch more"), after),
        "cannot": failing(Unsupported("has no L1")),
        "last": lambda: Contender(nothing),
    }
    suite["cases"] = [case("first", contenders)]
    assert bench() == 0
    found = kept(tmp_path / "scratch")
    assert [row.peer for row in found.rows] == ["torch fused", "regkernels", "last"]
    reasons = {item.peer: item.reason for item in found.left_out}
    assert reasons["crashes"] == "RuntimeError: illegal access" and reasons["cannot"] == "has no L1"
    assert "left out: crashes: RuntimeError: illegal access" in capsys.readouterr().out


def test_without_its_baseline_a_case_has_another(suite: Any, tmp_path: Path) -> None:
    suite["cases"] = [case("first", {"torch fused": crashing(RuntimeError("no"))} | makers("a", "b"))]
    assert bench() == 0
    assert {row.baseline for row in kept(tmp_path / "scratch").rows} == {"a"}


def test_who_computes_something_else_is_no_baseline(suite: Any, tmp_path: Path) -> None:
    notes = {"torch fused": "wrong: weights stay as they are", "a": "wrong for other layouts: all of them"}
    suite["cases"] = [case("first", makers("torch fused", "a", "b"), notes=notes)]
    assert bench() == 0
    assert {row.baseline for row in kept(tmp_path / "scratch").rows} == {"a"}


def test_too_little_memory_is_said(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "available", lambda device: 2**30)
    suite["cases"] = [
        case("huge", {"regkernels": failing(AssertionError("must not be made"))}, memory=3 * 2**30),
        case(
            "wrong guess",
            makers("regkernels") | {"a": failing(torch.OutOfMemoryError("CUDA")), "b": crashing(MemoryError())},
        ),
    ]
    assert bench() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "skipped: question: huge: too little memory: it takes about 3 GiB, 1 GiB are free" in printed
    assert "left out: a: too little memory: CUDA" in printed
    assert "left out: b: too little memory: MemoryError" in printed
    assert [row.peer for row in kept(tmp_path / "scratch").rows] == ["regkernels"]


def test_a_quick_run_ends_in_time(
    suite: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUICK", 0.0)
    suite["cases"] = [case("first", makers("regkernels"))]
    assert bench("--quick") == 1
    captured = capsys.readouterr()
    assert "the time of a quick run is over" in captured.out and "nothing could be measured" in captured.err


def test_a_quick_run_asks_all_questions_first() -> None:
    cases = [Case(suite, str(number), {}) for suite in "ab" for number in range(3)]
    assert [case.suite + case.name for case in running.in_turn(cases)] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_threads_of_a_suite_are_set_back(suite: Any) -> None:
    suite["cases"] = [case("first", {"regkernels": lambda: Contender(lambda: torch.set_num_threads(3))})]
    assert bench("--threads", "1") == 0
    assert torch.get_num_threads() == 1


def test_a_device_that_has_crashed_ends_nothing(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frees = iter([2**40, RuntimeError("CUDA error: illegal access"), 2**40])

    def available(device: str) -> int:
        free = next(frees)
        if isinstance(free, Exception):
            raise free
        return free

    monkeypatch.setattr(room, "available", available)
    suite["cases"] = [case(name, makers("regkernels")) for name in ("first", "second", "third")]
    assert bench() == 0
    assert [row.case for row in kept(tmp_path / "scratch").rows] == ["first", "third"]
    assert "skipped: question: second: RuntimeError: CUDA error: illegal access" in capsys.readouterr().out


def test_notes_are_said_once(suite: Any, capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"torch fused": "wrong: by 0.3"}
    suite["cases"] = [case(name, makers("torch fused", "regkernels"), notes=notes) for name in ("first", "second")]
    assert bench() == 0
    printed = capsys.readouterr().out
    assert printed.count("torch fused: wrong: by 0.3") == 1 and printed.count("│ torch fused (wrong) │") == 2


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--force"]])
def test_what_cannot_be_done_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = {"cuda": "no GPU", "--force": "belongs to --compare"}[arguments[-1]]
    assert bench(*arguments) in (1, 2) and text in capsys.readouterr().err


def test_an_output_that_is_a_file(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert bench("--output", str(tmp_path / "file")) == 1
    assert "error:" in capsys.readouterr().err


# --- what is listed ---


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "How long does nothing take?",
        "1.2.3",
        "not here: No module named 'exotic'",
        "2 tensors, 10 elements",
    ):
        assert text in printed, text
