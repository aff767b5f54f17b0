"""Runs of examples/gpt.py as users start it, in one process or, by torchrun, in several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch

import regkernels
from tests import ROOT

PROGRAM = ROOT / "examples" / "gpt.py"


def write_text(folder: Path) -> Path:
    """Sentences of a few words: soon learnt, and the same wherever the tests run."""
    words, random = ("name", "value", "table", "of", "the", "each", "one", "below"), Random(0)
    for number in range(40):
        lines = (" ".join(random.choices(words, k=8)) for _ in range(40))
        (folder / f"{number:02}.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


def start(text: Path, folder: Path, *options: str, ranks: int = 0) -> subprocess.Popen[str]:
    """Errors are among its output. One thread each: it is a matter of bits, not of time. ``ranks``: 0 for no torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(regkernels.__file__).parents[1])}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    command = [sys.executable, *torchrun, str(PROGRAM), f"--text={text}", f"--out={folder}", *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)  # type: ignore[no-any-return]


def assert_same(ours: Any, theirs: Any, where: str = "checkpoint") -> None:
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs, where
