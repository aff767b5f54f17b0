"""State dicts that earlier versions have written load, and training goes on in every bit as it would have there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.optim.checkpoint import kept

FILES = sorted(kept.FOLDER.glob("states_*.pt"))
KEPT: dict[str, dict[str, Any]] = {path.stem: torch.load(path, weights_only=True) for path in FILES}
CASES = [(file, name) for file, kept_there in KEPT.items() for name in kept_there]


@pytest.mark.filterwarnings("ignore:l1 has little effect", "ignore:centered=True")
@pytest.mark.parametrize(("file", "name"), CASES, ids=[f"{file} {name}" for file, name in CASES])
def test_training_goes_on(file: str, name: str) -> None:
    case = KEPT[file][name]
    model, optimizer = kept.made(*kept.NAMES[name])
    with torch.no_grad():
        for param, weights in zip(model.parameters(), case["weights"], strict=True):
            param.copy_(weights)
    optimizer.load_state_dict(case["state"])
    kept.train(model, optimizer, range(kept.STEPS, kept.STEPS + kept.FURTHER))
    for param, expected in zip(model.parameters(), case["after"], strict=True):
        assert torch.equal(param, expected)


def test_all_that_there_is_is_kept() -> None:
    """Of every optimizer and precision: the file that is missing is that of the next version, written by ``kept``."""
    assert FILES, "nothing is kept"
    missing = kept.NAMES.keys() - {name for _, name in CASES}
    assert not missing, f"no state dict of {sorted(missing)} is kept: python -m tests.optim.checkpoint.kept VERSION"


def test_a_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    monkeypatch.setattr(kept, "NAMES", dict(list(kept.NAMES.items())[:1]))
    kept.main("9.1")
    with pytest.raises(SystemExit, match=r"states_9_1\.pt is there already"):
        kept.main("9.1")
