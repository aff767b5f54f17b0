"""Records of benchmarks: compared with each other, drawn, and written into README.md and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import matplotlib.image

from benchmarks import pictures, report
from benchmarks.compare import CannotCompare, Comparison, compare, load
from benchmarks.headlines import TABLE, headlines
from benchmarks.record import LeftOut, Record, Row
from regkernels.__main__ import main

STREAMS = {"copy": 50.0, "update": 60.0, "read": 45.0}
GPT = "gpt2-small, 148 tensors, 124 M"


def row(peer: str, ms: float, baseline_ms: float, spread: float = 0.02, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "suite": "optimizer_step",
        "case": f"adamw, float32: {GPT}",
        "peer": peer,
        "baseline": "torch fused",
        "shapes": "gpt2-small",
        "x": None,
        "ms": ms,
        "low_ms": ms * (1 - spread),
        "high_ms": ms * (1 + spread),
        "cold_ms": ms,
        "ratio": baseline_ms / ms,
        "ratio_low": baseline_ms / ms * (1 - spread),
        "ratio_high": baseline_ms / ms * (1 + spread),
        "ratio_cold": baseline_ms / ms,
        "rounds": 10,
        "bytes_moved": 3_484_314_624,
        "gigabytes_per_second": 3484 / ms,
        "percent_of_stream": 100 * 3484 / ms / 60,
        "stream": "update",
    }
    return Row(**values | fields)


def a_record(*rows: Row, **fields: Any) -> Record:
    values: dict[str, Any] = {
        "machine": "Some CPU",
        "threads": 8,
        "instruction_set": "avx2",
        "commit": "abc",
        "versions": {"regkernels": "1", "torch": "2"},
        "streams_gb_per_s": STREAMS,
    }
    return Record(**values | fields, rows=list(rows))


def two(ours: float, baseline: float = 50.0, **fields: Any) -> Record:
    return a_record(row("torch fused", baseline, baseline), row("regkernels", ours, baseline, **fields))


def factors(comparison: Comparison) -> dict[str, float]:
    return {change.peer: round(change.factor, 2) for change in comparison.changes}


def test_a_record_survives_json(tmp_path: Path) -> None:
    assert Record.load(full_record().save(tmp_path / "record.json")) == full_record()


# --- comparing ---


@pytest.mark.parametrize(
    ("after", "changed", "fails"),
    [
        (two(40.0), {"regkernels": 1.25}, False),
        (two(51.0), {}, False),  # nothing that these percentiles would not allow for
        (two(54.0), {"regkernels": 0.93}, False),  # slower, but tolerated
        (two(70.0), {"regkernels": 0.71}, True),
        (two(70.0, spread=0.4), {}, False),
        (two(75.0, baseline=75.0), {"torch fused": 0.67}, False),  # the machine is slower, the ratio the same
        (two(50.0, baseline=35.0), {"regkernels": 0.70, "torch fused": 1.43}, True),  # hidden by a faster machine
    ],
)
def test_what_changed(after: Record, changed: dict[str, float], fails: bool) -> None:
    found = compare(two(50.0), after)
    assert factors(found) == changed and found.fails == fails
    assert found.steady == 2 - len(changed) and found.warnings == []


def test_a_slowdown_of_others_does_not_fail() -> None:
    before, after = (a_record(row("torch fused", 50, 50), row("optimi", ms, 50)) for ms in (60.0, 90.0))
    found = compare(before, after)
    assert factors(found) == {"optimi": 0.67} and not found.fails


def test_with_another_torch_times_count() -> None:
    """The baseline has become faster, regkernels has not become slower."""
    after = replace(two(50.0, baseline=30.0), versions={"regkernels": "1", "torch": "3"})
    found = compare(two(50.0), after)
    assert factors(found) == {"torch fused": 1.67} and not found.fails
    assert "other versions (torch)" in found.warnings[0]
    assert compare(two(50.0), replace(two(60.0, baseline=30.0), versions=after.versions)).fails


def test_what_is_in_one_record_only_is_counted() -> None:
    assert compare(two(50.0), a_record(row("torch fused", 50, 50), row("optimi", 60, 50))).only_in_one == 2
    with pytest.raises(CannotCompare, match="no case and peer in common"):
        compare(two(50.0), a_record(row("optimi", 60, 50)))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"machine": "Other CPU"}, "machines: Some CPU and Other CPU"),
        ({"threads": 4}, "numbers of threads: 8 and 4"),
        ({"device": "cuda"}, "devices: cpu and cuda"),
    ],
)
def test_other_circumstances_need_force(other: dict[str, Any], text: str) -> None:
    with pytest.raises(CannotCompare, match=text):
        compare(two(50.0), replace(two(50.0), **other))
    assert text in compare(two(50.0), replace(two(50.0), **other), force=True).warnings[0]


def test_exit_codes_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, same, slow, other = (
        str(record.save(tmp_path / f"{number}.json"))
        for number, record in enumerate((two(50.0), two(50.5), two(70.0), replace(two(50.0), threads=1)))
    )
    assert main(["bench", "--compare", before, same]) == 0
    assert "0 changed beyond noise, 2 did not" in capsys.readouterr().out
    assert main(["bench", "--compare", before, slow]) == 1
    printed = capsys.readouterr().out
    assert "1.40 x slower" in printed and "slower by more than 10 %" in printed
    assert main(["bench", "--compare", before, other]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["bench", "--compare", before, other, "--force"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("{", "is not JSON"),
        ("[]", "is no record"),
        (json.dumps({"rows": [{"question": "old"}], "left_out": []}), "is no record"),
        (json.dumps({"rows": []}), "is no record"),
    ],
)
def test_files_that_are_no_records(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CannotCompare, match=message):
        load(path)
    assert main(["bench", "--compare", str(path), str(path)]) == 2
    assert message in capsys.readouterr().err
    assert main(["bench", "--compare", str(tmp_path), str(tmp_path)]) == 2


# --- pictures, README.md and the page ---


def full_record() -> Record:
    rows = [
        row("torch fused", 52, 52),
        row("regkernels", 55, 52),
        row("optimi", 40, 52, note="wrong: 3 % of the weights differ"),
        row("torch foreach", 170, 52, note="wrong with gradients that are not contiguous: weights stay"),
    ]
    for name, times in (("1000x1000", (4.0, 0.5, 0.4)), ("2000x64", (7.0, 0.45, 0.44))):
        case = {"suite": "many_tensors", "case": f"adamw: {name}", "bytes_moved": 28_000_000}
        for peer, ms in zip(("torch fused", "regkernels", "regkernels, FlatParameters"), times, strict=True):
            rows.append(row(peer, ms, times[0], **case))
    for suite, points in (("elements", (2.0**10, 2.0**20, 2.0**28)), ("tensors", (1.0, 100.0, 10000.0))):
        for x in points:
            fields = {"suite": suite, "case": f"adamw: {x:g}", "x": x, "bytes_moved": 28_000_000}
            rows += [row("torch fused", x / 1e4 + 0.1, x / 1e4 + 0.1, **fields), row("regkernels", 0.1, 0.2, **fields)]
    return replace(a_record(*rows), left_out=[LeftOut("", "", "exotic", "not installed")])


def test_pictures(tmp_path: Path) -> None:
    path = tmp_path / "cpu-8-threads.json"
    written = pictures.draw(full_record(), path)
    assert [picture.name for picture in written] == [
        f"cpu-8-threads-{what}.png" for what in ("stream", "elements", "tensors")
    ]
    assert [picture for _, picture in pictures.beside(path)] == written
    for picture in written:
        assert picture.stat().st_size < 150_000
        height, width, _ = matplotlib.image.imread(picture).shape
        assert 900 <= width <= 1400 and height > 200
    before = [picture.read_bytes() for picture in written]
    pictures.draw(full_record(), path)
    assert [picture.read_bytes() for picture in written] == before


def test_pictures_of_nearly_nothing(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    assert pictures.draw(a_record(), path) == []
    assert pictures.draw(a_record(row("regkernels", 3, 3, bytes_moved=0)), path) == []
    assert len(pictures.draw(a_record(row("regkernels", 3, 3, baseline="regkernels")), path)) == 1


def test_peers_can_be_told_apart() -> None:
    looks = [str(pictures.look(peer)) for peer in pictures.all_peers()]
    assert len(set(looks)) == len(looks)


def test_headlines_fall_back_to_what_there_is() -> None:
    quick = a_record(*(row("regkernels", 1, 1, case=f"{rule}: nanogpt") for rule in ("sgd", "momentum")))
    assert [rows[0].case for rows in headlines(quick, TABLE)] == ["sgd: nanogpt", "momentum: nanogpt"]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts README.md, the page and the records elsewhere; returns where."""
    parts = {tmp_path / "README.md": report.short_part, tmp_path / "page.md": report.whole_part}
    for name, value in {"ROOT": tmp_path, "PARTS": parts}.items():
        monkeypatch.setattr(report, name, value)
    monkeypatch.setattr(report, "CPU", tmp_path / "results" / "cpu.json")
    monkeypatch.setattr(report, "GPU", tmp_path / "results" / "gpu.json")
    for path in parts:
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path


def test_texts(texts: Path) -> None:
    path = full_record().save(report.CPU)
    pictures.draw(full_record(), path)
    assert main(["bench", "--readme"]) == 0
    readme, page = ((texts / name).read_text() for name in ("README.md", "page.md"))
    for text, part in ((readme, report.short_part), (page, report.whole_part)):
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert report.rewritten(text, part) == text
    assert "| 55.0 ms | torch fused: 52.0 ms | 0.945× |" in readme and "FlatParameters" not in readme
    assert "Some CPU, 8 threads, avx2; regkernels 1, torch 2, commit abc. The machine streams 60 GB/s" in page
    assert "| regkernels | 55.0 | 106 | 0.945 (0.927 to 0.964) | torch fused, 52.0 | the same |" in page
    lines = [line for line in page.splitlines() if "| many tensors |" in line]
    assert [("FlatParameters" in line, "2000x64" in line) for line in lines] == [
        (False, False),
        (True, False),
        (False, True),  # FlatParameters is hardly faster there
    ]
    assert "compute something else than they should: optimi (optimizer step)." in page
    assert "Not installed on this machine: exotic." in page
    assert "](../results/cpu-elements.png)" in page


def test_texts_with_a_gpu(texts: Path) -> None:
    full_record().save(report.CPU)
    replace(full_record(), machine="Some GPU", device="cuda", instruction_set="sm_90").save(report.GPU)
    text = report.rewritten((texts / "page.md").read_text(), report.whole_part)
    assert text.index(report.END) < text.index(report.GPU_BEGIN) < text.index("Some GPU, sm_90; ") < text.index("after")
    assert report.rewritten(text, report.whole_part) == text


def test_texts_without_record_or_marks(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--readme"]) == 1
    assert "results/cpu.json is missing" in capsys.readouterr().err
    full_record().save(report.CPU)
    (texts / "page.md").write_text("nothing")
    before = (texts / "README.md").read_text()
    assert main(["bench", "--readme"]) == 1
    assert (texts / "page.md").read_text() == "nothing" and (texts / "README.md").read_text() == before
