"""examples/gpt.py: learns, makes zeros, and comes to the same bits whatever interrupts it."""

from __future__ import annotations

import importlib
import re
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

import regkernels
from tests import ROOT
from tests.support.gpt_runs import PROGRAM, assert_same, load, start, write_text

STEPS = 160
TINY = (
    "--layers=1 --width=32 --heads=2 --context=32 --batch-size=8 --dropout=0.1 --lr=1e-2 --warmup=10 --l1=3e-4 "
    f"--steps={STEPS} --log-every=20 --save-every=50 --device=cpu"
).split()


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Programs import what lies beside them; nothing of that stays for other tests."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    names = ("gpt", "gpt_model", "gpt_options", "gpt_ranks", "gpt_report")
    yield Namespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run from the beginning to the end: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    with start(text, folder, *TINY) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0
    return folder, printed


def table(printed: str) -> dict[int, list[float]]:
    """Rows of the table by step: loss, validation loss, zeros in per cent, and so on."""
    rows = re.findall(r"^ +(\d+)((?: +[\d.,e+-]+%?){7})$", printed, re.MULTILINE)
    return {int(step): [float(value.rstrip("%").replace(",", "")) for value in rest.split()] for step, rest in rows}


def trained(modules: Any, folder: Path) -> Any:
    model = modules.gpt_model.GPT(layers=1, width=32, heads=2, context=32, dropout=0.1).to(torch.bfloat16)
    model.load_state_dict(load(folder)["model"])
    return model.double().eval()


def test_it_learns_and_makes_zeros(modules: Any, text: Path, finished: tuple[Path, str]) -> None:
    folder, printed = finished
    rows = table(printed)
    assert list(rows) == list(range(20, STEPS + 1, 20))
    windows, held_out, _ = modules.gpt.read_windows(str(text), 32)
    frequencies = torch.bincount(windows[:, 0].long(), minlength=256).double().clamp(min=1e-3)
    without_context = -(frequencies / frequencies.sum())[held_out.long()].log().mean().item()
    assert rows[STEPS][1] < without_context - 0.5 and rows[STEPS][1] < rows[20][1] - 0.5
    assert rows[STEPS][0] < rows[20][0] - 0.5
    zeros = {".mlp." in name: [0, 0] for name in load(folder)["model"]}
    for name, weight in load(folder)["model"].items():
        zeros[".mlp." in name][0] += int((weight == 0).sum())
        zeros[".mlp." in name][1] += weight.numel()
    assert zeros[True][0] > 0.4 * zeros[True][1] and zeros[False][0] == 0
    assert rows[STEPS][2] == pytest.approx(100 * zeros[True][0] / zeros[True][1], abs=0.051)
    assert f" {zeros[True][0]:,} of the {zeros[True][1]:,} in MLPs are exactly zero" in printed
    assert re.search(r"^def ", printed, re.MULTILINE)


def test_interruptions_change_no_bit(text: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    with start(text, tmp_path, *TINY) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("     60 "):  # the checkpoint of step 50 is there
                process.kill()
                break
    assert 50 <= load(tmp_path)["step"] < STEPS
    with start(text, tmp_path, "--resume") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("    100 "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    stopped = load(tmp_path)["step"]
    assert (
        process.returncode == 128 + signal.SIGINT
        and f"Stopped after step {stopped}," in rest
        and "Traceback" not in rest
    )
    assert 100 <= stopped < STEPS
    with start(text, tmp_path, "--resume") as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert_same(load(tmp_path), load(finished[0]) | {"settings": load(tmp_path)["settings"]})
    assert printed.split("\n\n")[2:] == finished[1].split("\n\n")[2:]  # savings and sample


def test_idle_units_can_be_removed(modules: Any, finished: tuple[Path, str]) -> None:
    folder, printed = finished
    model, idle = trained(modules, folder), 0
    tokens = torch.randint(256, (2, 32))
    expected = model(tokens)
    for block in model.blocks:
        up, down = block.mlp[0].weight.detach(), block.mlp[2].weight.detach()
        used = up.any(1) & down.any(0)
        idle += int((~used).sum())
        block.mlp[0].weight, block.mlp[2].weight = (torch.nn.Parameter(w) for w in (up[used], down[:, used]))
    assert f" {idle:,} of the 128 hidden units" in printed and idle > 0
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_a_prediction_knows_the_past_alone(modules: Any) -> None:
    model = modules.gpt_model.GPT(layers=2, width=16, heads=4, context=12, dropout=0.0).double()
    tokens = torch.randint(256, (3, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, 7:], before[:, 7:])
    windows = torch.randint(256, (5, 13), dtype=torch.uint8)
    probabilities = torch.softmax(model(windows[:, :-1].long()), -1)
    of_next = probabilities.gather(2, windows[:, 1:, None].long())
    assert model.loss(windows).item() == pytest.approx(-of_next.log().mean().item(), rel=1e-6)
    assert model.validate(windows, batch_size=2) == pytest.approx(model.loss(windows).item(), rel=1e-6)


def test_every_parameter_is_in_one_group(modules: Any) -> None:
    model = modules.gpt_model.GPT(layers=2, width=16, heads=4, context=12, dropout=0.0)
    args = Namespace(l1=0.5, weight_decay=0.25, lr=1.0, max_grad_norm=1.0)
    groups = modules.gpt.make_optimizer(model, args).param_groups
    names = {param: name for name, param in model.named_parameters()}
    grouped = [[names[param] for param in group["params"]] for group in groups]
    assert sorted(name for names in grouped for name in names) == sorted(names.values())
    assert grouped[0] == [f"blocks.{block}.mlp.{layer}.weight" for block in (0, 1) for layer in (0, 2)]
    assert [(group["l1"], group["weight_decay"]) for group in groups] == [(0.5, 0.25), (0.0, 0.25), (0.0, 0.0)]
    assert all("norm" in name for name in grouped[2]) and not any("norm" in name for name in grouped[1])


def test_learning_rate(modules: Any) -> None:
    args = Namespace(lr=0.5, warmup=10, steps=110)
    rates = [modules.gpt.learning_rate(step, args) for step in range(111)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(10)])
    assert rates[10] == 0.5 and rates[60] == pytest.approx(0.275) and rates[110] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_text(modules: Any, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.py").write_bytes(bytes([number]) * 10)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_bytes(b"x" * 100)
    windows, held_out, fingerprint = modules.gpt.read_windows(str(tmp_path), 3)
    learnt, checked = set(windows.flatten().tolist()), set(held_out.flatten().tolist())
    assert checked == {0, 20} and learnt == set(range(40)) - checked
    assert windows.shape == (380 - 3, 4) and held_out.shape == (20 - 3, 4)
    (tmp_path / "39.py").write_bytes(b"y" * 10)
    assert modules.gpt.read_windows(str(tmp_path), 3)[2] != fingerprint
    with pytest.raises(SystemExit, match=r"too little Python source in .* 0 bytes"):
        modules.gpt.read_windows(str(tmp_path / "none"), 3)


def test_help(modules: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        modules.gpt.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for option, value in vars(modules.gpt_options.make_parser().parse_args([])).items():
        explained = printed.split(f" --{option.replace('_', '-')} ")[-1].split(" --")[0]
        assert value is False or f"(default: {value})" in explained, option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--steps: must be a whole number greater than 0, got '0'"),
        ("--batch-size 1.5", "--batch-size: must be a whole number greater than 0, got '1.5'"),
        ("--lr fast", "--lr: must be a number, got 'fast'"),
        ("--dtype float64", "--dtype: invalid choice: 'float64'"),
        ("--width 30 --heads 4", "--width 30 is no multiple of --heads 4"),
        ("--warmup 9 --steps 9", "--warmup 9 is not less than --steps 9"),
        ("--resume", "nothing to resume: there is no"),
        ("--l1 -1", "l1"),
        ("--l1 nan", "l1"),
        ("--lr -1", "lr"),
        ("--max-grad-norm -1", "max_grad_norm"),
        ("--dropout 2", "dropout"),
        ("--device nowhere", "nowhere"),
        ("--text {}", "too little Python source in"),
    ],
)
def test_bad_arguments(
    arguments: str, message: str, modules: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments.format(tmp_path).split()
    if "--text" not in words:
        words.append(f"--text={text}")
    out = tmp_path / "new"
    with pytest.raises(SystemExit) as stopped:
        modules.gpt.main([f"--out={out}", *words])
    assert stopped.value.code != 0
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
    assert not out.exists()


def test_bad_checkpoints(
    modules: Any, text: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            modules.gpt.main(list(arguments))
        assert stopped.value.code not in (0, None)
        return f"{stopped.value.code} {capsys.readouterr().err}"

    folder = finished[0]
    assert "exists: go on with --resume, or choose another folder" in error(f"--out={folder}", *TINY)
    assert "--l1 is 0.0003 in" in error(f"--out={folder}", "--resume", "--l1=0.1")
    other = tmp_path / "text"
    other.mkdir()
    for path in text.iterdir():
        (other / path.name).write_bytes(path.read_bytes() + b"\n")
    state = load(folder)
    state["settings"]["text"] = str(other)
    torch.save(state, tmp_path / "checkpoint.pt")
    assert "is no longer the one" in error(f"--out={tmp_path}", "--resume")
    (tmp_path / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:1000])
    assert "is no checkpoint of this program" in error(f"--out={tmp_path}", "--resume")


def test_a_failed_save_leaves_the_last_checkpoint(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    modules.gpt.save(path, {"step": 1})

    def fails(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="No space"):
        modules.gpt.save(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_without_tensorboard(modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SystemExit, match=r"pip install tensorboard"):
        modules.gpt_report.Log(str(tmp_path), 1, tensorboard=True)


def test_the_walk_through_shows_the_program() -> None:
    page, program = (ROOT / "docs" / "example_gpt.md").read_text(), PROGRAM.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert "".join(block.split()) in "".join(re.sub("return ", "optimizer = ", program).split())
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target


def test_tensorboard_shows_each_step_once(modules: Any, tmp_path: Path) -> None:
    names = ("loss", "validation", "zeros", "grad norm", "lr", "bytes/s", "min left")
    sums = [torch.tensor([factor, 2 * factor, 3 * factor]) for factor in (1.5, 2.5, 4)]
    stats = regkernels.optim.Stats(*sums, torch.tensor(0.5), torch.zeros(3, dtype=torch.int64))
    for first, steps, value in ((1, (10, 20, 30), 1.0), (21, (30, 40), 2.0)):  # interrupted after the checkpoint of 20
        log = modules.gpt_report.Log(str(tmp_path), first, tensorboard=True)
        for step in steps:
            log.row({"step": step} | dict.fromkeys(names, value), stats)
        log.close()
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    for name in names[:-1]:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(10, 1), (20, 1), (30, 2), (40, 2)]
    for name, factor in (("l1_norm", 1.5), ("squared_norm", 2.5), ("nonzeros", 4)):
        for group, times in (("mlps", 1), ("matrices", 2), ("norms", 3)):
            assert events.Scalars(f"{name}/{group}")[-1].value == times * factor
