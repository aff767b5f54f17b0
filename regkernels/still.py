"""A proximal operator of one tensor: the step of an optimizer that moves nothing before it shrinks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regkernels import backends
from regkernels.table import segments
from regkernels.table.formats import Format
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper
from regkernels.table.segments import Kind

_NO_GROUPS = GroupLayout(0, 0, 0)


class Still:
    """Stands for a plan of one entry, and for that entry, as the backends look at them.

    ``weight``: dense, changed in place; ``l1_weight``: in the layout of ``weight``, in the compute type; ``layout``: for the
    penalty "group".
    """

    rule, tensors, kept, stream, places, total = "still", (), None, 0, 0, 0
    totals, generation, leaves_out = 1, 0, False
    format = Format("nearest", torch.float32, narrow=False)

    def __init__(
        self, weight: Tensor, penalty: str, l1_weight: Tensor | None = None, layout: GroupLayout = _NO_GROUPS
    ) -> None:
        self.weight, self.l1_weight, self.layout, self.device = weight, l1_weight, layout, weight.device
        self.by_groups = penalty == "group"
        self.kind = Kind("still", weight.dtype, penalty=penalty)
        self.device_memory: Any = None

    @property
    def segments(self) -> Tensor:
        row = [0] * len(segments.FIELDS)
        row[segments.WEIGHT] = row[segments.GRADIENT] = self.weight.data_ptr()
        row[segments.L1_WEIGHT] = 0 if self.l1_weight is None else self.l1_weight.data_ptr()
        row[segments.NUMEL], row[segments.KIND] = self.weight.numel(), self.kind.number
        row[segments.GROUPS], row[segments.INNER] = self.layout.groups, self.layout.inner
        return torch.tensor([row], dtype=torch.int64, device="cpu")

    def gradient_to_read(self) -> Tensor:
        return self.weight

    def active_entries(self) -> Iterator[tuple[Still, int]]:
        yield self, 0

    def apply(self, hyper: Hyper) -> None:
        backends.backend_for(self.device).update(self, [hyper], 0)
