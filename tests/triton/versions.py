"""Compiles or runs every kernel with each Triton that the supported versions of torch bring: gigabytes to download, and minutes.

``python -m tests.triton.versions [3.6 ...] [-- ARGUMENT ...]`` makes a virtual environment for each in build/triton-VERSION, and
prints there what ``python -m tests.triton.compiled ARGUMENT ...`` does: ``-- sm_90`` compiles for one target, ``-- --run sm_90`` runs
what it was compiled to, and ``--record`` notes either in docs/ptx.md. The exit status is non-zero where one of them failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from tests import ROOT

TORCH = {"3.6": "2.11", "3.7": "2.13", "3.8": "2.14"}
"""By the version of Triton that it brings."""

BESIDE = ("numpy", "rich", "pytest")
"""What the modules import that compile. Not in the versions of requirements-dev.txt, which are those for one torch."""


def environment(triton: str) -> Path:
    """Returns the interpreter of an environment with that Triton; makes it where there is none."""
    folder = ROOT / "build" / f"triton-{triton}"
    python, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, f"torch=={TORCH[triton]}.*", f"triton=={triton}.*", *BESIDE], check=True)
        ready.touch()
    return python


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    versions, passed_on = arguments[:split] or list(TORCH), arguments[split + 1 :]
    unknown = [version for version in versions if version not in TORCH]
    if unknown:
        print(f"error: {', '.join(unknown)} is none of {', '.join(TORCH)}", file=sys.stderr)
        return 2
    failed = []
    for version in versions:
        print(f"--- Triton {version}, torch {TORCH[version]}", flush=True)
        command = [str(environment(version)), "-m", "tests.triton.compiled", *passed_on]
        # Of the checkout, whose extension this interpreter has built; the same interpreter is in the environment.
        own = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subprocess.run(command, cwd=ROOT, env=own).returncode:
            failed.append(version)
    print(f"failed: {', '.join(failed)}" if failed else "none failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
