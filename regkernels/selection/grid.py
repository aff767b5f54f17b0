"""Holds the strengths that cross-validation tries, and chooses one of them by the scores of the folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

Strength = float | tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """Holds one candidate per strength, in the order in which the user gave them.

    Attributes:
        keys: of the param groups that penalise.
        points: for each candidate a number per key.
        single: whether the user gave one key as a word, so that a strength is a number and not a tuple.
    """

    keys: tuple[str, ...]
    points: tuple[tuple[float, ...], ...]
    single: bool

    def __len__(self) -> int:
        return len(self.points)

    def strength(self, index: int) -> Strength:
        """Returns a candidate as the user would write it."""
        return self.points[index][0] if self.single else self.points[index]

    def options(self, index: int) -> dict[str, float]:
        """Returns the entries of a param group that make a candidate."""
        return dict(zip(self.keys, self.points[index], strict=True))


def grid_of(key: Any, strengths: Any) -> Grid:
    """Returns the checked grid.

    Raises:
        TypeError, ValueError: for a key that is no word, and strengths that are none, negative, not finite or there twice.
    """
    single = isinstance(key, str)
    keys = (key,) if single else tuple(key) if isinstance(key, (tuple, list)) else ()
    if not keys or not all(isinstance(each, str) for each in keys) or len(set(keys)) < len(keys):
        raise TypeError(f"key must be a param-group key such as 'l1', or a tuple of different ones, got {key!r}")
    try:
        if isinstance(strengths, (str, bytes)):
            raise TypeError
        listed = list(strengths)
    except TypeError:
        raise TypeError(
            f"strengths must be a list of numbers, got {strengths!r}; for one strength pass [{strengths!r}]"
        ) from None
    if not listed:
        raise ValueError("strengths is empty: pass one or more, such as numpy.geomspace(1e-5, 1e-2, 12)")
    points = tuple(_point(index, given, keys, single) for index, given in enumerate(listed))
    for index, point in enumerate(points):
        if point in points[:index]:
            raise ValueError(f"strengths[{index}] is there twice, got {listed[index]!r}; pass each once")
    return Grid(keys, points, single)


def _point(index: int, given: Any, keys: tuple[str, ...], single: bool) -> tuple[float, ...]:
    entries = [given] if single else given
    if not isinstance(entries, (Sequence, numpy.ndarray)) or isinstance(entries, str) or len(entries) != len(keys):
        raise TypeError(
            f"strengths[{index}] must have a number for each of the keys {', '.join(keys)}, got {given!r}; "
            "itertools.product makes such a list"
        )
    numbers = []
    for entry in entries:
        try:
            if isinstance(entry, (bool, numpy.bool_)):
                raise TypeError
            number = float(entry)
        except (TypeError, ValueError):
            raise TypeError(f"strengths[{index}] must be a number >= 0, got {given!r}") from None
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"strengths[{index}] must be >= 0 and finite, got {given!r}")
        numbers.append(number)
    return tuple(numbers)


def said_of_edge(grid: Grid, chosen: int) -> str | None:
    """Returns a sentence where a choice is the first or last of three or more strengths, so that a better one may lie beyond."""
    for place, key in enumerate(grid.keys):
        values = sorted({point[place] for point in grid.points})
        value = grid.points[chosen][place]
        if len(values) > 2 and value in (0.0, *values[1:-1]):
            continue
        if len(values) > 2:
            end, more = ("largest", "larger") if value == values[-1] else ("smallest", "smaller")
            return f"the chosen {key}={value:g} is the {end} that was tried, and a {more} one may be better: add some to strengths"
    return None


def chosen_by(rule: str, grid: Grid, scores: Any) -> int:
    """Returns the index of the candidate that a rule chooses: of several that would do the one with the largest strength.

    Args:
        rule: "min" takes the best mean score, "1se" any within one standard error of it:
            ``sqrt(mean((scores - mean)**2) / (folds - 1))`` of the best candidate's, as glmnet's ``cvsd``; 0 with one fold.
        grid: whose points are compared number by number, in the order of the keys.
        scores: (candidates, folds), the higher the better.

    Source: Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    means = scores.mean(1)
    best = int(means.argmax())
    error = numpy.sqrt(scores[best].var() / max(1, scores.shape[1] - 1)) if rule == "1se" else 0.0
    return max(numpy.flatnonzero(means >= means[best] - error).tolist(), key=lambda index: grid.points[index])
