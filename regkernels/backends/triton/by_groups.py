"""Says which kernels make the step of segments that fall into groups: one, or one for each stage where programs share groups."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends.triton import architectures
from regkernels.backends.triton.cuts import RESIDENT, draws, holds_little
from regkernels.backends.triton.kernels.group_stages import SLOTS
from regkernels.backends.triton.kernels.groups import STAGES, update_groups, update_resident
from regkernels.backends.triton.launch import Step, empty
from regkernels.backends.triton.tables import Launch
from regkernels.reference.kinds import Kind

_SHARED = 36 * 1024
"""Bytes of shared memory that leave room for more than one program on every device."""


_REGISTERS = 64 * 1024
"""Of a multiprocessor, which one program can have."""


def steps(kind: Kind, each: Launch, rows: Tensor, partials: Tensor, chunks: int, *, with_sums: bool) -> list[Step]:
    """Returns the launches, in order. ``chunks``: of all launches, for each of which ``partials`` has a place per sum."""
    architecture = architectures.of_device(rows.device)
    cut, dtype = each.cut, reference.compute_dtype(kind.dtype)
    constants = {"STRIP": cut.strip, "WIDE": cut.wide, "PIPELINE": 1, **architecture.options_of_groups}
    shape = architecture.holding(max(cut.span, RESIDENT), dtype) if cut.span else architecture.update
    if architecture.registers_of_rows and holds_little(kind):
        constants["maxnreg"] = min(architecture.registers_of_rows, _REGISTERS // (shape.warps * architecture.warp_size))
    if cut.span:
        held = max(cut.span, RESIDENT) * dtype.itemsize * (2 + len(reference.RULES[kind.rule].state_names))
        if cut.wide:
            constants["PIPELINE"] = min(architecture.update.stages, 1 + _SHARED // held)
        return [Step(update_resident, shape, dtype, [rows, partials], [chunks], constants)]
    if cut.wide:
        constants["PIPELINE"] = architecture.update.stages
    if draws(kind) and architecture.warp_size == 64:
        dtype = (
            torch.float64
        )  # for blocks of fewer elements: a random counter for each takes more registers than AMD has
    scratch = empty(rows.device, SLOTS if cut.shared else 0, each.chunks, cut.strip)
    pointers, numbers = [rows, partials, scratch], [chunks, each.chunks]
    return [
        Step(update_groups, shape, dtype, pointers, numbers, {**constants, "STAGE": stage})
        for stage in (STAGES if cut.shared else ("whole",))
        if _does_something(stage, kind, with_sums)
    ]


def _does_something(stage: str, kind: Kind, with_sums: bool) -> bool:
    if stage in ("observe", "share"):
        return reference.RULES[kind.rule].step_per_element
    return with_sums or stage != "count"
