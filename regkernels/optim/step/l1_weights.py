"""Notices that somebody has exchanged or changed the tensors of a param group's ``l1_weights``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regkernels.distributed.shards import trace


class L1Weights:
    """Remembers tensors as they were when something was made of them: a plan, or copies."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._tensors = list(tensors)
        self._seen = [trace(tensor) for tensor in self._tensors]

    def changed(self, tensors: Sequence[Any]) -> bool:
        """Tells whether there are other tensors now, or other values in them.

        What was copied would be out of date then, and what is negative now must be refused.
        """
        return len(tensors) != len(self._tensors) or any(
            new is not old or trace(new) != seen
            for new, old, seen in zip(tensors, self._tensors, self._seen, strict=True)
        )
