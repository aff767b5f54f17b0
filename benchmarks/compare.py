"""Finds what has become faster or slower from one record to another.

Two runs of the same program differ: the machine's clock, its neighbours and the pages that the arrays get are others. As
all contenders of a case take turns, such a change hits the baseline too and cancels in `Row.ratio`, so that is what is
compared. It would be wrong where the baseline itself has changed: for the baseline's own rows, where there is another
one, or where PyTorch or anything else but regkernels has another version. There, times are compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.names import is_ours
from benchmarks.record import Record, Row

NOISE = 1.03
"""Two runs of the same may differ by so much, although each of them is steady."""

TOLERATED = 1.10


class CannotCompare(Exception):
    """Says why."""


@dataclass(frozen=True)
class Change:
    """Describes a change by ``factor``: how many times as fast B is, by the medians; ``least``: if A's worse rounds (their 20th or 80th
    percentile) are held against B's better ones, or the other way round, whichever is nearer to no change."""

    suite: str
    case: str
    peer: str
    before_ms: float
    after_ms: float
    factor: float
    least: float

    @property
    def fails(self) -> bool:
        return is_ours(self.peer) and self.least < 1 / TOLERATED


@dataclass(frozen=True)
class Comparison:
    """Holds ``changes``: beyond noise, the worst first."""

    changes: list[Change]
    steady: int
    only_in_one: int
    warnings: list[str]

    @property
    def fails(self) -> bool:
        return any(change.fails for change in self.changes)


def load(path: Path) -> Record:
    try:
        return Record.load(path)
    except FileNotFoundError:
        raise CannotCompare(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotCompare(f"{str(path)!r} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise CannotCompare(f"{str(path)!r} is not JSON: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotCompare(f"{str(path)!r} is no record of this version of the benchmarks: {error}") from None


def compare(before: Record, after: Record, *, force: bool = False) -> Comparison:
    warnings = _differences(before, after, force)
    same_software = _software(before) == _software(after)
    if not same_software:
        changed = sorted(dict(_software(before).items() ^ _software(after).items()))
        warnings.append(
            f"other versions ({', '.join(changed)}): times are compared, so another state of the machine counts as well"
        )
    earlier, later = _by_key(before), _by_key(after)
    both = [key for key in earlier if key in later]
    if not both:
        raise CannotCompare("the two records have no case and peer in common")
    found = [_change(earlier[key], later[key], same_software) for key in both]
    changes = [change for change in found if change.least != 1]
    return Comparison(
        sorted(changes, key=lambda change: (not change.fails, change.least)),
        len(found) - len(changes),
        len(earlier.keys() ^ later.keys()),
        warnings,
    )


def _differences(before: Record, after: Record, force: bool) -> list[str]:
    pairs = {
        "machines": (before.machine, after.machine),
        "devices": (before.device, after.device),
        "numbers of threads": (before.threads, after.threads),
    }
    if before.device == after.device == "cuda":
        del pairs["numbers of threads"]
    warnings = [f"other {what}: {a} and {b}" for what, (a, b) in pairs.items() if a != b]
    if warnings and not force:
        raise CannotCompare("; ".join(warnings) + " (--force compares all the same)")
    if before.instruction_set != after.instruction_set:
        warnings.append(f"other instruction sets: {before.instruction_set} and {after.instruction_set}")
    return warnings


def _software(record: Record) -> dict[str, str]:
    return {name: version for name, version in record.versions.items() if name != "regkernels"}


def _by_key(record: Record) -> dict[tuple[str, str, str], Row]:
    return {(row.suite, row.case, row.peer): row for row in record.rows}


def _change(before: Row, after: Row, same_software: bool) -> Change:
    by_ratio = same_software and before.baseline == after.baseline != before.peer
    if by_ratio and before.ratio_low > 0 and after.ratio_low > 0:
        factor = after.ratio / before.ratio
        low, high = after.ratio_low / before.ratio_high, after.ratio_high / before.ratio_low
    else:
        tiny = 1e-6  # of a millisecond; times are rounded
        factor = before.ms / max(after.ms, tiny)
        low, high = before.low_ms / max(after.high_ms, tiny), before.high_ms / max(after.low_ms, tiny)
    least = low if low > NOISE else high if high < 1 / NOISE else 1.0
    return Change(before.suite, before.case, before.peer, before.ms, after.ms, factor, least)
