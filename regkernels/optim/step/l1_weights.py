"""The tensors of a param group's ``l1_weights``: noticing that somebody has exchanged or changed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regkernels.distributed.shards import held


class L1Weights:
    """As they were when a plan was built."""

    def __init__(self, group: Mapping[str, Any]) -> None:
        self._tensors = list(group["l1_weights"])
        self._seen = [self._look_at(tensor) for tensor in self._tensors]

    def changed(self, group: Mapping[str, Any]) -> bool:
        """Whether there are other tensors now, or others' values: what was copied would be out of date, and what is negative
        now must be refused."""
        tensors = group["l1_weights"]
        return len(tensors) != len(self._tensors) or any(
            new is not old or self._look_at(new) != seen
            for new, old, seen in zip(tensors, self._tensors, self._seen, strict=True)
        )

    @staticmethod
    def _look_at(tensor: Any) -> tuple[int, int, int]:
        # What is done to a DTensor, and what is done to the memory of this rank, count for themselves.
        own = held(tensor)
        return tensor._version, own._version, own.data_ptr()
