"""The GPU benchmark, on a CPU: clocks and sizes are exchanged, so that all but the figures is as it will be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import device, gpu, gpu_cases, record, report, shapes, timing


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for clock in ("device_time", "wall_time", "host_time"):
        monkeypatch.setattr(device, clock, timing.wall_time)
    monkeypatch.setattr(device, "architecture", lambda: "sm_00")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU, 1 GB")
    monkeypatch.setattr(gpu, "ELEMENTS", 1000)
    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_cases, "SIZES", {"100 M": 1000, "1 B": 2000})
    monkeypatch.setattr(gpu_cases, "compiled", lambda name, params, **options: [])
    monkeypatch.setattr(shapes, "equal", lambda count, elements: [(min(elements, 10),)] * min(count, 3))
    for model in ("gpt2_small", "llama_1b"):
        monkeypatch.setattr(shapes, model, lambda: [(3, 4), (5,)])
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)


def test_every_case_runs_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu.run(quick=False, save=True)
    assert record.Record.load(tmp_path / "some-gpu-1-gb.json") == found
    assert len({(row.question, row.case) for row in found.rows}) == len(list(gpu_cases.builders(quick=False))) == 13
    assert all(row.warm_ms >= 0 and row.baseline for row in found.rows)
    printed = capsys.readouterr().out
    assert all(row.contender in printed for row in found.rows)


def test_a_case_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large() -> timing.Case:
        raise torch.OutOfMemoryError("tried to allocate\nmuch")

    monkeypatch.setattr(gpu_cases, "llama", too_large)
    found = gpu.run(quick=False, save=False)
    assert len({(row.question, row.case) for row in found.rows}) == 12


def test_its_record_makes_a_table_of_its_own() -> None:
    """And leaves the CPU's as it is, whatever the file is called."""
    processor = record.Record(machine="A CPU", limits_gb_per_s={"update": 1.0, "read": 2.0})
    processor.save()
    text = f"before\n{report.BEGIN}\n{report.END}\nafter\n"
    alone = report.with_tables(text, report.newest_record(), report.last_record("gpu"))
    assert "GPU" not in alone
    gpu.run(quick=True, save=True)
    both = report.with_tables(text, report.newest_record(), report.last_record("gpu"))
    assert both.startswith(alone[: alone.index("after")].rstrip()) and both.endswith("\nafter\n")
    assert "Some GPU, 1 GB" in both and both.count(report.GPU_BEGIN) == 1
    assert report.with_tables(both, report.newest_record(), report.last_record("gpu")) == both


def test_shapes_are_those_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for of, tensors, elements in ((shapes.gpt2_small(), 148, 124_439_808), (shapes.llama_1b(), 146, 1_235_814_400)):
        assert (len(of), sum(torch.Size(shape).numel() for shape in of)) == (tensors, elements)
