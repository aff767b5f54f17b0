"""What every test against a framework runs under: no network, no reports to anybody, files in a directory of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Read when transformers is imported, which is after this.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", TRANSFORMERS_VERBOSITY="error")


@pytest.fixture(autouse=True)
def _forget_accelerators() -> Iterator[None]:
    """Accelerate keeps its device and precision for the whole process, and the Trainer uses Accelerate."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
