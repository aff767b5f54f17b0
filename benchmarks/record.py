"""The record of one measurement, and where records are kept."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import regkernels

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    ``warm``: steps that follow each other, the caches holding what fits. ``cold``: the first step after another contender
    has had the machine, as after a forward and backward pass. Medians; ``low`` and ``high`` are the 20th and 80th
    percentile of the warm times. ``speedup``: median over rounds of baseline time / this time.
    """

    question: str
    case: str
    contender: str
    baseline: str
    warm_ms: float
    low_ms: float
    high_ms: float
    cold_ms: float
    speedup: float
    speedup_cold: float
    bytes_moved: int  # that must be read and written at least
    gigabytes_per_second: float
    percent_of_limit: float  # of the machine's read-modify-write bandwidth, or read bandwidth where nothing is written


@dataclass
class Record:
    """All rows of a run, with what is needed to judge them."""

    machine: str = field(default_factory=lambda: machine())
    threads: int = field(default_factory=torch.get_num_threads)
    commit: str = field(default_factory=lambda: commit())
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "regkernels": regkernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    )
    instruction_set: str = field(default_factory=lambda: str(regkernels.info()["instruction_set"]))
    limits_gb_per_s: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    device: str = "cpu"  # or "gpu"

    def save(self) -> Path:
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", self.machine.lower()).strip("-")
        path = RESULTS / (f"{name}-{self.threads}-threads.json" if self.device == "cpu" else f"{name}.json")
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        data = json.loads(path.read_text())
        return cls(**{**data, "rows": [Row(**row) for row in data["rows"]]})


def machine() -> str:
    """The processor's name."""
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    return cpu.group(1) if cpu else platform.processor() or platform.machine()


def commit() -> str:
    """The checked-out commit, with a + where files differ from it; empty outside of a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../README.md")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
