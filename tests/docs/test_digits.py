"""examples/digits_group_lasso.py: what is compacted is the same network, and the page shows what the record says."""

from __future__ import annotations

import copy
import importlib
import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console

import regkernels as rk
from tests import ROOT

RECORD = ROOT / "examples" / "results" / "digits_group_lasso.json"
MODULES = ("digits_group_lasso", "digits_report", "digits_times")


@pytest.fixture(scope="module")
def program() -> Iterator[Namespace]:
    """Programs import what lies beside them; nothing of that stays for other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield Namespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def short(program: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """A run of ``--quick``: what it found, printed and wrote."""
    folder = tmp_path_factory.mktemp("digits")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        console = Console(width=80, record=True, file=io.StringIO())
        patch.setattr(program.digits_group_lasso, "Console", lambda: console)
        program.digits_group_lasso.main(
            ["--quick", f"--record={folder / 'record.json'}", f"--picture={folder / 'picture.png'}"]
        )
    assert torch.get_num_threads() == threads
    findings = program.digits_report.read(folder / "record.json")
    return Namespace(folder=folder, findings=findings, printed=console.export_text())


def test_units_die_and_the_compacted_network_answers_the_same(short: Namespace) -> None:
    found = short.findings
    assert found.same_predictions and found.difference < 1e-5
    without, *others = found.points
    assert without.hidden == [[512, 256]] and without.parameters == [64 * 512 + 512 + 512 * 256 + 256 + 2560 + 10]
    for point in others:
        ((first, second),) = point.hidden
        assert point.parameters == [64 * first + first + first * second + second + 10 * second + 10]
        assert point.compacted_test == point.test
    chosen = found.points[found.chosen["group_l1"]]
    assert chosen.alive[0][-1] < 450 and sum(chosen.hidden[0]) <= chosen.alive[0][-1]
    assert chosen.test[0] > 0.9 and found.refit[0] > 0.9


def test_what_is_printed(short: Namespace) -> None:
    """The table fits into 80 columns, whole."""
    rows = [line for line in short.printed.splitlines() if "group_l1 = " in line or "... compacted" in line]
    assert len(rows) == 3 and all(row.rstrip().endswith(" x") for row in rows) and "…" not in short.printed
    assert "zero rows" in short.printed and "167,178 ->" in short.printed and "kept" not in short.printed
    assert (short.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("penalty", "strength"), [("group_l1", 1e-3), ("l1", 1e-3)])
def test_outputs_in_float64(program: Namespace, penalty: str, strength: float) -> None:
    """Rounding is all that compaction changes: in double precision there is next to none."""
    example, settings = program.digits_group_lasso, program.digits_group_lasso.QUICK
    digits = example.load()
    counts: list[int] = []
    few = example.replace(settings, epochs=4)
    trained = example.train(penalty, strength, 0, digits, few, lambda: counts.append(1))
    large = copy.deepcopy(trained.model).double()
    compacted = rk.compact(large).model
    assert len(counts) == 4 and sum(example.units(compacted)) < 700
    images = digits.images.double()
    torch.testing.assert_close(compacted(images), large(images), rtol=0, atol=1e-12)
    rows = sum(int((large[layer].weight != 0).any(1).sum()) for layer in (0, 2))
    assert trained.alive[-1] == (rows if penalty == "group_l1" else 768)


@pytest.mark.parametrize("penalty", ["group_l1", "l1", "none"])
def test_what_is_penalised(program: Namespace, penalty: str) -> None:
    model = program.digits_group_lasso.network((5, 4), seed=0)
    hidden, rest = program.digits_group_lasso.optimizer_for(model, penalty, 1e-3, lr=1e-2).param_groups
    assert [param.shape for param in hidden["params"]] == [(5, 64), (4, 5)]
    assert [param.shape for param in rest["params"]] == [(5,), (4,), (10, 4), (10,)]
    for name in ("group_l1", "l1"):
        assert hidden.get(name, 0) == (1e-3 if name == penalty else 0) and rest.get(name, 0) == 0


def test_images_are_in_one_part_each(program: Namespace) -> None:
    digits = program.digits_group_lasso.load()
    parts = torch.cat([digits.train, digits.validation, digits.test])
    assert torch.equal(parts.sort().values, torch.arange(1797)) and digits.images.max() == 1


@pytest.mark.parametrize(
    ("tolerance", "index"),
    [(0.0, 1), (0.01, 2), (0.03, 3), (-0.05, 1)],
)
def test_the_choice(program: Namespace, tolerance: float, index: int) -> None:
    def point(penalty: str, validation: float, parameters: int) -> Any:
        return program.digits_report.Point(penalty, 1.0, [validation], [1.0], [1.0], [[1, 1]], [parameters], [[1]])

    points = [point("none", 0.96, 50), point("l1", 0.965, 40), point("l1", 0.955, 30), point("l1", 0.94, 20)]
    points.append(point("group_l1", 0.99, 1))
    assert program.digits_group_lasso.choose(points, "l1", tolerance) == index


def test_times(program: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each network moves by a known time: medians, and ratios to the first network."""
    now, images = [0.0], torch.zeros(7, 1)

    class Takes(torch.nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += self.seconds
            return x

    monkeypatch.setattr(program.digits_times, "thread_time", lambda: now[0])
    large, small = program.digits_times.forward_times({"large": Takes(8e-3), "small": Takes(2e-4)}, images, 5)
    assert (large.name, large.batch, small.name) == ("large", 7, "small")
    assert large.microseconds == pytest.approx(8000) and small.microseconds == pytest.approx(200)
    assert large.speedup == 1 and [small.low, small.speedup, small.high] == pytest.approx([40, 40, 40])


@pytest.mark.parametrize("option", ["--epochs=0", "--seeds=-1"])
def test_bad_numbers(program: Namespace, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.digits_group_lasso.main([option])
    assert f"{option.split('=')[0]} must be at least 1" in capsys.readouterr().err


def test_the_page_shows_the_record(program: Namespace) -> None:
    report = program.digits_report
    findings, page = report.read(RECORD), (ROOT / "docs" / "example_digits.md").read_text()
    assert report.as_markdown(findings) in page and findings.example in page
    assert " ".join(report.in_words(findings).split()) in " ".join(page.split())
    assert findings.same_predictions
    (without, *group, _, _, _, _) = findings.points
    after_one = [report.mean(counts[0] for counts in point.alive) for point in group]
    assert max(after_one) < sum(findings.hidden) - 100 and after_one == sorted(after_one, reverse=True)
    small, plain = (report.mean(findings.points[findings.chosen[name]].parameters) for name in ("group_l1", "l1"))
    assert 1.9 < plain / small < 2.1 and without.hidden[0] == findings.hidden
