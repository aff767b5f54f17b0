"""Installs a wheel into an environment of its own, on a machine without a compiler as far as it can see, and tries it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check(wheel: Path, environment: Path) -> None:
    """Installs ``wheel`` with the torch that development uses, and runs try_it.py there."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    python = environment / "bin" / "python"
    # Neither a compiler nor anything of this environment is on the PATH.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "REGKERNELS", "VIRTUAL"))}
    clean |= {"PATH": str(python.parent), "CC": "/nonexistent", "CXX": "/nonexistent"}
    pinned = [
        line
        for line in (ROOT / "requirements-dev.txt").read_text().splitlines()
        if line.startswith(("torch==", "numpy=="))
    ]
    for packages in (pinned, ["--no-index", str(wheel)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, env=clean, cwd=environment)
    subprocess.run([python, "-W", "error", ROOT / "wheels" / "try_it.py"], check=True, env=clean, cwd=environment)
