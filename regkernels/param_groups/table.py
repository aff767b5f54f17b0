"""Prints which parameters are penalised, which are not, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

NAMES = {True: "penalised", False: "not penalised"}
"""What the two param groups are called."""


class Row(NamedTuple):
    """Describes a parameter; ``shape`` is None as long as it has none."""

    name: str
    shape: tuple[int, ...] | None
    penalised: bool
    reason: str

    @property
    def elements(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape)


class ParamGroups(list[dict[str, Any]]):
    """Is a list of param groups, which prints as a table of the parameters that were divided: what is penalised and what is not."""

    def __init__(self, groups: Iterable[dict[str, Any]] = (), rows: Sequence[Row] = (), strengths: str = "") -> None:
        super().__init__(groups)
        self._rows, self._strengths = list(rows), strengths

    def __str__(self) -> str:
        if not self._rows:  # somebody else made it
            return super().__repr__()
        cells = {chosen: _cells([row for row in self._rows if row.penalised is chosen]) for chosen in (True, False)}
        widths = [max(map(len, column)) for column in zip(*cells[True], *cells[False], strict=True)]
        lines = []
        for chosen, lines_of_group in cells.items():
            rows = [row for row in self._rows if row.penalised is chosen]
            count = f"{len(rows)} tensor{'' if len(rows) == 1 else 's'}, {sum(row.elements for row in rows):,} elements"
            lines.append(f"{NAMES[chosen]}{self._strengths if chosen else ''}: {count}")
            for name, shape, elements, reason in lines_of_group:
                line = f"  {name:{widths[0]}}  {shape:{widths[1]}}  {elements:>{widths[2]}}  {reason}"
                lines.append(line.rstrip())
        return "\n".join(lines)

    __repr__ = __str__


def _cells(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """Returns name, shape, number of elements and reason, one line for parameters that differ in numbers within their names only."""
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        alike.setdefault((re.sub(r"\d+", "#", row.name), row.shape, row.reason), []).append(row)
    return [
        (
            _joint_name([row.name for row in same]),
            "no shape yet" if shape is None else " x ".join(map(str, shape)) or "()",
            (f"{len(same)} x " if len(same) > 1 else "") + f"{same[0].elements:,}",
            reason,
        )
        for (_, shape, reason), same in alike.items()
    ]


def _joint_name(names: Sequence[str]) -> str:
    """Returns one name for all, with what is counted in brackets: ``layers.[0-11].weight``."""
    numbers = list(zip(*(re.findall(r"\d+", name) for name in names), strict=True))
    texts = re.split(r"\d+", names[0])
    columns = [sorted({int(number) for number in column}) for column in numbers]
    every = math.prod(map(len, columns)) == len(names)  # each number of a place with each of the others
    joint = texts[0]
    for column, text in zip(columns, texts[1:], strict=True):
        joint += (_joint_number(column) if every or len(column) == 1 else "[..]") + text
    return joint


def _joint_number(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"[{values[0]}-{values[-1]}]"
    return f"[{','.join(map(str, values))}]" if len(values) <= 4 else "[..]"
