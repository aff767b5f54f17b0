"""docs/checkpoints.md: its code runs, and does what the text says."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.optim.checkpoint import recipes


def test_the_code_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in recipes.blocks():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of running without a process group
            exec(compile(block, str(recipes.PATH), "exec"), names)
    assert "has shape (9, 7), the parameter has (9, 6)" in capsys.readouterr().out
    assert torch.load("run.pt", weights_only=True)["step"] == 9
    written = {"run.pt", "run", "last_layer.pt", "model.safetensors", "first_state.pt"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert names["optimizer"].state[names["model"][0].weight]["step"] == 1


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    recipe = recipes.functions()
    path = tmp_path / "run.pt"
    recipe["save"]({"step": 1}, path)
    with pytest.raises(TypeError, match="pickle"):
        recipe["save"]({"step": 2, "not to be written": (item for item in ())}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
