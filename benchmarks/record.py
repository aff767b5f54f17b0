"""Keeps the record of a run: one folder per machine under benchmarks/results/."""

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
    """Describes one contender in one case. Times are medians over rounds.

    ``ms``: runs that follow each other, the caches holding what fits; ``low_ms`` and ``high_ms`` are the 20th and 80th
    percentile. ``cold_ms``: the first run after another contender has had the machine, as after a forward and backward pass.
    ``ratio``: baseline time / this time, round by round, with the same percentiles.
    """

    suite: str
    case: str
    peer: str
    baseline: str
    shapes: str
    x: float | None
    ms: float
    low_ms: float
    high_ms: float
    cold_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_cold: float
    rounds: int
    bytes_moved: int  # that must be read and written at least; 0: the question is not about memory
    gigabytes_per_second: float
    percent_of_stream: float
    stream: str  # which of the machine's streams 100 % is
    note: str = ""  # such as: wrong, with the difference
    stream_gb_per_s: float | None = None  # measured right before the case, as neighbours come and go
    peak_bytes: int | None = (
        None  # of memory, beyond what is there before and after; None where that is not the question
    )


@dataclass(frozen=True)
class LeftOut:
    """Says what was not measured; an empty ``peer`` stands for all of the case."""

    suite: str
    case: str
    peer: str
    reason: str


@dataclass
class Record:
    """Holds all rows of a run, with what is needed to judge them."""

    machine: str
    device: str = "cpu"  # or "cuda"
    instruction_set: str = ""  # AVX-512 and the like, or a GPU's architecture
    threads: int = field(default_factory=torch.get_num_threads)
    commit: str = field(default_factory=lambda: commit())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    streams_gb_per_s: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def path(self) -> Path:
        machine = re.sub(r"[^a-z0-9]+", "-", self.machine.lower()).strip("-")
        return RESULTS / machine / (f"cpu-{self.threads}-threads.json" if self.device == "cpu" else "gpu.json")

    def save(self, path: Path | None = None) -> Path:
        """Writes the whole record into a new file that then takes the old one's place: a run may be interrupted."""
        path = path or self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        data = json.loads(path.read_text())
        rows = [Row(**row) for row in data.pop("rows")]
        return cls(**data | {"rows": rows, "left_out": [LeftOut(**left) for left in data["left_out"]]})


def new(device: str) -> Record:
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        architecture = properties.gcnArchName if torch.version.hip else f"sm_{properties.major}{properties.minor}"
        return Record(torch.cuda.get_device_name(0), device, architecture)
    return Record(processor(), device, str(regkernels.info()["instruction_set"]))


def processor() -> str:
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        cpu = None
    return cpu.group(1) if cpu else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"regkernels": regkernels.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    if torch.version.cuda or torch.version.hip:
        found["ROCm" if torch.version.hip else "CUDA"] = str(torch.version.hip or torch.version.cuda)
    return found


def commit() -> str:
    """Returns the checked-out commit, with a + where files differ from it; empty outside of a checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../README.md")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
