"""Lists what a step asks of an optimizer. Everything else about a step is the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Number


@dataclass(frozen=True)
class Row:
    """Holds what a row of hyper-parameters depends on: a param group, and how far its parameters are."""

    group: int  # index of the param group
    step: int | Deferred  # of the step to come, from 1; 0 for rules that do not count
    first: bool


class Rules(Protocol):
    """Tells, by param group, which rule updates it, with which numbers, and which options it may have."""

    _counts_steps: ClassVar[bool]
    """Whether the rule depends on how many steps a parameter has made."""

    def _rule(self, group: Mapping[str, Any]) -> str:
        """Returns the rule (a key of `regkernels.reference.RULES`) that ``group`` is updated by."""

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        """Returns the hyper-parameters of a step: fields of `regkernels.table.hyper.Hyper`."""

    def _check_options(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        """Raises where an option of ``group`` has a value that is not allowed. ``where``: which param group, for messages.

        ``wait``: also where that takes waiting for a device to hand out the value.
        """
