"""Notes in docs/ptx.md how many kernels were compiled and run: a row for each version of Triton and target."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch
import triton

from tests import ROOT

PAGE = ROOT / "docs" / "ptx.md"
BEGIN, END = "<!-- record: begin -->\n", "<!-- record: end -->"
TITLES = ("Triton", "torch", "target", "compiled", "run")


def write(target: str, done: str, kernels: int, page: Path = PAGE, **mistakes: int) -> None:
    """Replaces what the row of a target and the Triton at hand says.

    ``done``: "compiled" or "run"; ``mistakes``: of each kind how many there were.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    lines, _, after = rest.partition(END)
    rows = {tuple(row[:3]): row for row in map(_cells, lines.splitlines()[2:])}
    key = (triton.__version__, torch.__version__.partition("+")[0], target)
    row = rows.setdefault(key, [*key, "", ""])
    numbers = [str(kernels), *(f"{count} {kind}" for kind, count in mistakes.items() if count)]
    row[TITLES.index(done)] = f"{', '.join(numbers)} ({date.today()})"
    table = [TITLES, ["---"] * len(TITLES), *(rows[key] for key in sorted(rows))]
    page.write_text(before + BEGIN + "".join(f"| {' | '.join(cells)} |\n" for cells in table) + END + after)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]
