"""The command line and the demo behind it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import regkernels
from regkernels import demo
from regkernels.__main__ import main

needs_extra = pytest.mark.skipif(bool(demo.missing_packages()), reason="needs scikit-learn, matplotlib and rich")
if not demo.missing_packages():
    import matplotlib.image
    from rich.console import Console

    from regkernels.demo import picture, report
    from regkernels.demo.results import Agreement, Results, agreement, percent
    from regkernels.demo.timing import VARIANTS, Variant
    from regkernels.demo.training import Recipe, Run, Settings


def command(*arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "regkernels")) -> Any:
    """Runs the command line as a user would, in a pipe and without colours."""
    # One thread: where other programs keep the cores busy, two spend seconds waiting for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    environment.pop("FORCE_COLOR", None)
    environment.pop("TTY_COMPATIBLE", None)
    environment["PYTHONPATH"] = str(Path(regkernels.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=cwd, env=environment, capture_output=True, encoding="utf-8"
    )


def block(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes importing a package fail as if it were not installed."""
    for name in [name for name in sys.modules if name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


# --- the demo ---


@needs_extra
def test_quick_demo(tmp_path: Path) -> None:
    done = command("demo", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

    rows = dict(re.findall(r"^│ ([^│]+?) +│(.+)│$", done.stdout, re.MULTILINE))
    assert list(rows) == ["no penalty", "textbook recipe", 'regkernels "subgradient"', 'regkernels "prox"']
    cells = {name: [cell.strip() for cell in row.split("│")] for name, row in rows.items()}
    zeros = {name: float(zeros.removesuffix(" %")) for name, (_, zeros, _, _) in cells.items()}
    assert zeros["no penalty"] == zeros["textbook recipe"] == zeros['regkernels "subgradient"'] == 0
    sparsity = zeros['regkernels "prox"']
    assert 20 < sparsity < 100
    for accuracy, _, milliseconds, speed in cells.values():
        assert 80 < float(accuracy.removesuffix(" %")) <= 100
        assert float(milliseconds) > 0 and float(speed.removesuffix(" x")) > 0
    assert cells["textbook recipe"][3] == "1.0 x"

    text = " ".join(done.stdout.split())
    number = r"([\d.e+-]+)"
    found = re.search(
        rf"at most {number} \(tolerance {number}\) in float32 and {number} \(tolerance {number}\) in float64", text
    )
    assert found, text
    single, single_tolerance, double, double_tolerance = map(float, found.groups())
    assert single <= single_tolerance <= 0.01
    assert double <= double_tolerance <= 1e-6
    assert f"{sparsity} % of the weights are exactly zero" in text
    assert "as fast as the textbook recipe" in text
    assert "The picture is in regkernels-demo.png" in text

    output = tmp_path / "regkernels-demo.png"
    assert list(tmp_path.iterdir()) == [output]
    content = output.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1500, 575)
    pixels = matplotlib.image.imread(output)
    assert pixels.shape[:2] == (575, 1500)
    for panel in (pixels[:, :500], pixels[:, 500:1000], pixels[:, 1000:]):
        assert panel[..., :3].std() > 0.05  # something was drawn


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "rich"])
def test_missing_extra(package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    block(monkeypatch, package)
    assert main(["demo", "--quick"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install scikit-learn matplotlib rich" in err
    assert {"sklearn": "scikit-learn"}.get(package, package) in err
    assert "Traceback" not in err


def test_missing_extra_as_a_user_sees_it(tmp_path: Path) -> None:
    program = "import sys; sys.modules['sklearn'] = None; from regkernels.__main__ import main; sys.exit(main())"
    done = command("demo", cwd=tmp_path, program=("-c", program))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install scikit-learn matplotlib rich" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- what it says of results that are not as they should be ---


def results(**changes: Any) -> Any:
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0])
    runs = {
        recipe: Run(1e-4, [1.0], 0.98, weights if recipe is Recipe.PROX else torch.full((4,), 0.1)) for recipe in Recipe
    }
    given: dict[str, Any] = {
        "settings": Settings(epochs=1),
        "runs": runs,
        "sweep": {recipe: [runs[recipe]] for recipe in (Recipe.TEXTBOOK, Recipe.PROX)},
        "single": Agreement(0.001, 0.01),
        "double": Agreement(1e-14, 1e-6),
        "milliseconds": dict.fromkeys(VARIANTS, 1.0),
    }
    return Results(**{**given, **changes})


def shown(found: Any) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        report.show(found, console)
    return " ".join(capture.get().split())


@needs_extra
@pytest.mark.parametrize("difference", [0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["single", "double"])
def test_says_so_where_curves_differ(difference: float, precision: str) -> None:
    text = shown(results(**{precision: Agreement(difference, 0.01)}))
    assert "WARNING" in text and "curves differ" in text
    assert f"{difference:.1g} (MORE than the tolerance 0.01)" in text
    assert "WARNING" not in shown(results())


@needs_extra
def test_the_table_fits_into_80_columns() -> None:
    """Also with times and ratios as they are on a slow, busy machine."""
    milliseconds = dict.fromkeys(VARIANTS, 0.5)
    milliseconds[Variant(Recipe.TEXTBOOK)] = 1234.567
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        report.show(results(milliseconds=milliseconds), console)
    rows = [line for line in capture.get().splitlines() if line.startswith("│")]
    assert len(rows) == len(Recipe)
    for row, recipe in zip(rows, Recipe, strict=True):
        assert recipe.value in row and "…" not in row


@needs_extra
def test_agreement_is_the_largest_difference_and_sees_nan() -> None:
    def run(*losses: float) -> Run:
        return Run(0.0, list(losses), 0.0, torch.zeros(1))

    assert agreement(run(1, 2, 3), run(1, 2.5, 2.75), 0.5) == (0.5, 0.5)
    assert agreement(run(1, 2, 3), run(1, 2.5, 2.75), 0.5).holds
    assert not agreement(run(1, 2, 3), run(1, 2.5, 2.75), 0.4).holds
    assert not agreement(run(1, float("nan"), 3), run(1, 2, 3), 0.5).holds


@needs_extra
@pytest.mark.parametrize(
    ("prox", "words"), [(0.98, "same accuracy"), (0.975, "same accuracy"), (0.96, "lower"), (0.995, "better")]
)
def test_the_story_follows_the_numbers(prox: float, words: str) -> None:
    runs = results().runs
    runs[Recipe.PROX] = runs[Recipe.PROX]._replace(accuracy=prox)
    milliseconds = dict.fromkeys(VARIANTS, 1.0)
    milliseconds[Variant(Recipe.TEXTBOOK)] = 7.0
    story = report.story(results(runs=runs, milliseconds=milliseconds))
    assert words in story
    assert "75.0 % of the weights are exactly zero" in story
    assert "7.0 x as fast" in story


@needs_extra
@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0 %"), (1, "100.0 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1e-5, "< 0.1 %")]
)
def test_percent_does_not_round_to_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


@needs_extra
@pytest.mark.parametrize("weight", [0.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("accuracy", [0.1, 1.0])
def test_the_picture_of_extreme_results(weight: float, accuracy: float, tmp_path: Path) -> None:
    """All weights zero or none, tiny or huge; prox as bad as guessing; curves that differ. A warning fails the test."""
    runs = results().runs
    runs[Recipe.PROX] = runs[Recipe.PROX]._replace(accuracy=accuracy, weights=torch.full((4,), weight))
    sweep = {recipe: [runs[recipe]] for recipe in (Recipe.TEXTBOOK, Recipe.PROX)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw(results(runs=runs, sweep=sweep, single=Agreement(float("nan"), 0.01)), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# --- the command line ---


def test_info_as_a_user_sees_it(tmp_path: Path) -> None:
    done = command("info", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(regkernels.info())
    for key, line in zip(regkernels.info(), lines, strict=True):
        assert re.match(rf"{key.replace('_', ' ')}  +\S", line)
    assert len({re.match(r".*?  +(?=\S)", line).end() for line in lines}) == 1  # type: ignore[union-attr]  # aligned
    assert regkernels.__version__ in lines[0]


@pytest.mark.parametrize("with_rich", [True, False])
def test_info_in_a_terminal(
    with_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a value looks like rich's markup, and with values of all kinds."""
    if with_rich:
        pytest.importorskip("rich")
    else:
        block(monkeypatch, "rich")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    made_up = {"two_items": ["x", "y"], "empty": [], "no": False, "yes": True, "nothing": None, "odd": "[red]é[/nope]"}
    monkeypatch.setattr(regkernels, "info", lambda: made_up)
    assert main(["info"]) == 0
    lines = [line.split(maxsplit=1) for line in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()]
    assert [line[-1].strip() for line in lines] == ["items  x, y", "none", "no", "yes", "none", "[red]é[/nope]"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["info", "demo", "--version"]),
        (["info", "--help"], ["bug report"]),
        (["demo", "--help"], ["--output", "--quick", "--seed", "--epochs", "pip install scikit-learn matplotlib rich"]),
    ],
)
def test_help(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ["python -m regkernels", *words]:
        assert word in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == f"regkernels {regkernels.__version__}"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["info", "--all"], "unrecognized arguments: --all"),
        (["demo", "--epochs", "0"], "--epochs: must be from 1 to 10000, got 0"),
        (["demo", "--epochs", "many"], "--epochs: must be a whole number, got 'many'"),
        (["demo", "--epochs", "1.5"], "--epochs: must be a whole number, got '1.5'"),
        (["demo", "--seed", "-1"], "--seed: must be from 0"),
        (["demo", "--output"], "--output: expected one argument"),
        (["demo", "--output", "picture.jpg"], "--output: must end in .png, got 'picture.jpg'"),
        (["demo", "--output", "no/such/folder/picture.png"], "--output: there is no folder 'no/such/folder'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as failure:
        main(arguments)
    assert failure.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
