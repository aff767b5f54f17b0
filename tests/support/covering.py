"""Parts of a product of factors in which every two values still meet, where the factors are independent of each other.

What is chosen depends on the factors alone: no chance, the same in every run and every process.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def dealt(rows: Sequence[tuple[Hashable, ...]], values: Sequence[T]) -> list[T]:
    """A value for each of ``rows``, such that a row has the one that its own values have met least often so far."""
    met: dict[tuple[int, Hashable, int], int] = {}
    result = []
    for row in rows:
        index = min(
            range(len(values)), key=lambda i: sum((met.get((*place, i), 0) + 1) ** 2 for place in enumerate(row))
        )
        for place in enumerate(row):
            met[(*place, index)] = met.get((*place, index), 0) + 1
        result.append(values[index])
    return result
