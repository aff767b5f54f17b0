"""Fuzzes by chance until its time is over: ``make fuzz ARGS="--seconds 3600 -k plans"``."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time

from tests import ROOT
from tests.fuzz.profiles import EXAMPLES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="no round is begun after these (%(default)s)")
    parser.add_argument("--examples", type=int, default=500, help="per round, in per cent of `make test` (%(default)s)")
    parser.add_argument("--seed", type=int, help="runs the one round of this seed")
    arguments, others = parser.parse_known_args()
    end, rounds = time.monotonic() + arguments.seconds, 0
    while rounds == 0 or (arguments.seed is None and time.monotonic() < end):
        seed, rounds = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed, rounds + 1
        status = _round(seed, arguments.examples, others)
        if status:
            # A process that died could not say which example it was.
            again = f'make fuzz ARGS="--seed {seed} --examples {arguments.examples} {" ".join(others)}"'
            print(f"round {rounds} failed ({'signal' if status < 0 else 'status'} {abs(status)}); again: {again}")
            return 1
        print(f"round {rounds}, seed {seed}: nothing found", flush=True)
    return 0


def _round(seed: int, examples: int, others: list[str]) -> int:
    """Runs all fuzzers in a process of their own; a failure's output is printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/fuzz", f"--hypothesis-seed={seed}", *others]
    environment = {**os.environ, EXAMPLES: str(examples), "OMP_WAIT_POLICY": "passive"}
    found = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    if found.returncode:
        print(found.stdout, found.stderr, sep="\n", flush=True)
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
