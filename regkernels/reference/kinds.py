"""Names what selects a kernel, and the numbers that tables of segments have for it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from regkernels.reference.family import PENALTIES
from regkernels.reference.metrics import METRICS
from regkernels.reference.rules import RULES
from regkernels.table.formats import DTYPES, FORMATS, compute_dtype, format_number, format_of

_RULES, _METRICS = tuple(RULES), tuple(METRICS)
_NUMBERS = {pair: number for number, pair in enumerate(itertools.product(RULES, PENALTIES))}


class Kind(NamedTuple):
    """Names the kernel of a step."""

    rule: str
    dtype: torch.dtype
    rounding: str = "nearest"
    narrow: bool = False  # states in bfloat16
    penalty: str = "plain"

    @property
    def number(self) -> int:
        """Returns the number in the table: that of rule and penalty times FORMATS, plus the number of the format."""
        return _NUMBERS[self.rule, self.penalty] * FORMATS + format_number(self.dtype, self.narrow, self.rounding)

    @classmethod
    def of(cls, number: int) -> Kind:
        """Inverts `number`."""
        rule, penalty = divmod(number // FORMATS, len(PENALTIES))
        dtype, narrow, rounding = format_of(number % FORMATS)
        return cls(_RULES[rule], dtype, rounding, narrow, PENALTIES[penalty])


class MetricKind(NamedTuple):
    """Names the kernel of a shrinkage after somebody else's step.

    ``narrow``: operands of half-precision weights are in the weights' type, not in float32.
    """

    metric: str
    dtype: torch.dtype
    narrow: bool = False

    @property
    def number(self) -> int:
        """Returns the number that stands in the table."""
        return (_METRICS.index(self.metric) * len(DTYPES) + DTYPES.index(self.dtype)) * 2 + self.narrow

    @classmethod
    def of(cls, number: int) -> MetricKind:
        """Inverts `number`."""
        metric, dtype = divmod(number // 2, len(DTYPES))
        return cls(_METRICS[metric], DTYPES[dtype], bool(number % 2))

    @property
    def operand_dtype(self) -> torch.dtype:
        """Returns the type of the tensors that the metric is computed from."""
        return self.dtype if self.narrow else compute_dtype(self.dtype)
