"""Calls the Triton kernels: turns tensors into tables of addresses in device memory and launches one kernel per operation.

What each function does is said in `regkernels.backends.protocol`. Tensors are on a CUDA or ROCm device, which the host never
waits for; with ``TRITON_INTERPRET=1`` the same kernels run, slowly, on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from regkernels import reference
from regkernels.backends.triton import architectures, by_groups
from regkernels.backends.triton.architectures import Architecture
from regkernels.backends.triton.kernels import columns, step, sums
from regkernels.backends.triton.kernels.metrics import METRICS
from regkernels.backends.triton.kernels.penalties import OPERATORS
from regkernels.backends.triton.kernels.proximal import proximal as proximal_kernel
from regkernels.backends.triton.kernels.rules import RULES
from regkernels.backends.triton.launch import TYPES, empty, guard, over_chunks, reduced, second_stage
from regkernels.backends.triton.penalties import (
    group_gradient,
    group_norms,
    penalty,
    penalty_gradient,
    soft_threshold,
    value,
    value_gradient,
    weighted,
    weighted_gradient,
)
from regkernels.backends.triton.rows import table_of_rows
from regkernels.backends.triton.tables import BatchMemory
from regkernels.reference.kinds import Kind, MetricKind
from regkernels.table.batch import Batch
from regkernels.table.segments import GRADIENT, SUMS, WEIGHT

__all__ = [
    "INTERPRETED",
    "gradient_square_sum",
    "gradient_square_sums",
    "group_gradient",
    "group_norms",
    "penalty",
    "penalty_gradient",
    "proximal",
    "soft_threshold",
    "update",
    "value",
    "value_gradient",
    "weighted",
    "weighted_gradient",
]

INTERPRETED = isinstance(step.update, InterpretedFunction)


def update(batch: Batch, *, with_sums: bool) -> Tensor | None:
    device = batch.device
    with guard(device):
        memory = _memory(batch)
        segments = batch.segments.numpy()
        work = memory.work(segments, batch.generation)
        table = table_of_rows(batch.rows, memory, device)
        partials = empty(device, len(SUMS) if with_sums else 0, work.layout.chunks)
        architecture = architectures.of_device(device)
        # Sums of pairs that do not hold are formed anew after the step, when a gradient in the weight's memory is gone.
        may_pair = with_sums and architecture.pairs and not (segments[:, WEIGHT] == segments[:, GRADIENT]).any()

        def constants(kind: Kind) -> dict[str, Any]:
            pairs = may_pair and architecture.adds_pairs(kind.dtype)
            return {
                "OBSERVE": RULES[kind.rule].observe,
                "RULE": RULES[kind.rule].advance,
                "STATES": len(reference.RULES[kind.rule].state_names),
                "PER_ELEMENT": reference.RULES[kind.rule].step_per_element,
                "STATE": tl.bfloat16 if kind.narrow else TYPES[reference.compute_dtype(kind.dtype)],
                "ROUNDING": kind.rounding,
                "STATS": with_sums,
                "MAY_SKIP": batch.may_leave_out,
                **(
                    {} if kind.penalty == "group" else _by_element(kind, architecture, with_sums=with_sums, pairs=pairs)
                ),
            }

        over_chunks(
            step.update,
            architecture.update,
            work,
            [table, partials],
            [work.layout.chunks],
            constants,
            by_groups=lambda kind, each: by_groups.steps(
                kind, each, table, partials, work.layout.chunks, with_sums=with_sums
            ),
        )
        if not with_sums:
            return None
        totals = empty(device, batch.totals, len(SUMS))
        second_stage(sums.add_totals, totals.shape, work, partials, totals, work.ranges, len(work.layout.launches))
        return totals


def _by_element(kind: Kind, architecture: Architecture, *, with_sums: bool, pairs: bool) -> dict[str, Any]:
    """Returns the constants of a step of elements that are in no groups."""
    # For no states and no sums, addresses in shared memory cost more than waiting does; for three there are no registers for them.
    states = len(reference.RULES[kind.rule].state_names)
    is_pipelined = states in (1, 2) or (with_sums and not states)
    constants = {
        "PENALTY": kind.penalty,
        "OPERATOR": OPERATORS.get(kind.penalty),
        "PAIRS": pairs,
        "PIPELINE": architecture.update.stages if is_pipelined else 1,
    }
    return (
        {**constants, "maxnreg": architecture.registers_of_pairs}
        if pairs and architecture.registers_of_pairs
        else constants
    )


def proximal(batch: Batch) -> None:
    device = batch.device
    with guard(device):
        memory = _memory(batch)
        over_chunks(
            proximal_kernel,
            architectures.of_device(device).elementwise,
            memory.work(batch.segments.numpy(), batch.generation),
            [table_of_rows(batch.rows, memory, device)],
            [],
            lambda kind: {
                "METRIC": METRICS[kind.metric],
                "OPERANDS": reference.METRICS[kind.metric].operands,
                "OPERAND": TYPES[kind.operand_dtype],
            },
            MetricKind.of,
        )


def gradient_square_sum(batch: Batch) -> Tensor:
    with guard(batch.device):
        work = _memory(batch).work_of_elements(batch.segments.numpy(), batch.generation)
        out = empty(batch.device)
        second_stage(sums.square_sum, (1,), work, reduced(work, columns.GRADIENT, batch.device, "square"), out)
        return out


def gradient_square_sums(batch: Batch, classes: int) -> list[Tensor]:
    with guard(batch.device):
        work = _memory(batch).work_of_elements(batch.segments.numpy(), batch.generation)
        partials = reduced(work, columns.GRADIENT, batch.device, "square")
        totals = empty(batch.device, batch.totals, len(SUMS))
        # What is reduced has one sum, which takes the first column; the others stay as they are.
        grid = (batch.totals, len(partials))
        second_stage(sums.add_totals, grid, work, partials, totals, work.ranges, len(work.layout.launches))
        square = totals[:, 0]
        return list(square.reshape(classes, batch.totals // classes).sum(1).unbind())


def _memory(batch: Batch) -> BatchMemory:
    """Returns what was kept from the producer's last batch."""
    if batch.memory.kept is None:
        batch.memory.kept = BatchMemory(batch.device, batch.totals)
    return batch.memory.kept  # type: ignore[no-any-return]
