"""The Triton kernels: turns tensors into tables of addresses in device memory and launches one kernel per operation.

Takes the calls of `regkernels.backends.cpu`, for tensors on a CUDA or ROCm device; the host never waits for the device.
With ``TRITON_INTERPRET=1`` the same kernels run, slowly, on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from regkernels import reference
from regkernels.backends.triton.architectures import Shape
from regkernels.backends.triton.architectures import of_device as of_device  # for triton_values, too
from regkernels.backends.triton.kernels import columns, elementwise, step, sums
from regkernels.backends.triton.kernels.groups import update_groups
from regkernels.backends.triton.kernels.metrics import METRICS
from regkernels.backends.triton.kernels.operators import OPERATORS
from regkernels.backends.triton.kernels.proximal import proximal as proximal_kernel
from regkernels.backends.triton.kernels.rules import RULES
from regkernels.backends.triton.tables import Launch, PlanMemory, Work, work_of
from regkernels.table import segments
from regkernels.table.hyper import Hyper
from regkernels.table.segments import Kind

if TYPE_CHECKING:
    from regkernels.attach.plan import Plan as Shrinkage
    from regkernels.optim.step.plan import Plan

INTERPRETED = isinstance(step.update, InterpretedFunction)

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def update(plan: Plan, rows: list[Hyper], groups: int) -> Tensor | None:
    """One step of all active entries. Returns the sums of `regkernels.table.segments.SUMS` per group, float64 (groups, sums), on the
    device; None for ``groups`` 0."""
    device = plan.device
    with _guard(device):
        memory = _memory(plan)
        work = memory.work(plan.segments.numpy(), plan.generation)
        table = memory.rows(rows)
        partials = _empty(device, len(segments.SUMS) if groups else 0, work.layout.chunks)

        def constants(kind: Kind) -> dict[str, Any]:
            by_element = {"PENALTY": kind.penalty, "OPERATOR": OPERATORS.get(kind.penalty)}
            return {
                "OBSERVE": RULES[kind.rule].observe,
                "RULE": RULES[kind.rule].advance,
                "STATES": len(reference.RULES[kind.rule].state_names),
                "PER_ELEMENT": reference.RULES[kind.rule].step_per_element,
                "STATE": tl.bfloat16 if kind.narrow else TYPES[reference.compute_dtype(kind.dtype)],
                "ROUNDING": kind.rounding,
                "STATS": groups > 0,
                "MAY_SKIP": plan.leaves_out,
                **({} if kind.penalty == "group" else by_element),
            }

        _over_chunks(
            step.update,
            of_device(device).update,
            work,
            [table, partials],
            [work.layout.chunks],
            constants,
            by_groups=update_groups,
        )
        if not groups:
            return None
        totals = _empty(device, groups, len(segments.SUMS))
        _second_stage(sums.add_groups, totals.shape, work, partials, totals, work.ranges, len(work.layout.launches))
        return totals


def gradient_square_sum(plan: Plan) -> Tensor:
    """Sum of the squares of all gradients: float64, 0-dim, on the device."""
    with _guard(plan.device):
        work = _memory(plan).work_of_elements(plan.segments.numpy(), plan.generation)
        out = _empty(plan.device)
        _second_stage(sums.square_sum, (1,), work, _reduce(work, columns.GRADIENT, plan.device), out)
        return out


def gradient_square_sums(plan: Plan, classes: int) -> list[Tensor]:
    """The same for each class of parameters: float64, 0-dim, on the device."""
    with _guard(plan.device):
        work = _memory(plan).work_of_elements(plan.segments.numpy(), plan.generation)
        partials = _reduce(work, columns.GRADIENT, plan.device)
        totals = _empty(plan.device, plan.totals, len(segments.SUMS))
        # Of what is reduced there are two sums; the other columns stay as they are.
        grid = (plan.totals, len(partials))
        _second_stage(sums.add_groups, grid, work, partials, totals, work.ranges, len(work.layout.launches))
        square = totals[:, segments.SUMS.index("square")]
        return list(square.reshape(classes, plan.totals // classes).sum(1).unbind())


def penalty(tensors: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """``l1 * sum |w| + l2 * sum w^2`` of dense tensors: 0-dim, on their device."""
    device = tensors[0].device
    with _guard(device):
        work = work_of(tensors, tensors)
        out = torch.empty((), dtype=reference.penalty_dtype(tensors), device=device)
        _second_stage(sums.penalty, (1,), work, _reduce(work, columns.WEIGHT, device), out, l1, l2)
        return out


def penalty_gradient(
    tensors: Sequence[Tensor], out: Sequence[Tensor], upstream: Tensor, absolute: float, square: float
) -> None:
    """``out = upstream * absolute * sign(w) + upstream * square * w`` for dense tensors of equal layout."""
    _map(elementwise.penalty_gradient, tensors, out, upstream, absolute, square)


def soft_threshold(x: Tensor, out: Tensor, threshold: float) -> None:
    """``out = soft_threshold(x)`` for dense tensors of equal layout; ``out`` may be ``x``."""
    _map(elementwise.shrink, [x], [out], None, threshold, 0.0)


def proximal(plan: Shrinkage, rows: list[Hyper]) -> None:
    """Shrinks the weights of a plan in the metric of the step that was made."""
    device = plan.device
    with _guard(device):
        memory = _memory(plan)
        _over_chunks(
            proximal_kernel,
            of_device(device).elementwise,
            memory.work(plan.segments.numpy(), plan.generation),
            [memory.rows(rows)],
            [],
            lambda kind: {
                "METRIC": METRICS[kind.metric],
                "OPERANDS": reference.METRICS[kind.metric].operands,
                "OPERAND": TYPES[kind.operand_dtype],
            },
            plan.kind_of,
        )


def _map(
    function: Any, tensors: Sequence[Tensor], out: Sequence[Tensor], scale: Tensor | None, first: float, second: float
) -> None:
    device = tensors[0].device
    with _guard(device):
        work = work_of(tensors, out)
        pointer = work.segments if scale is None else scale
        constants = {"FUNCTION": function, "SCALED": scale is not None}
        shape = of_device(device).elementwise
        _over_chunks(
            elementwise.elementwise, shape, work, [pointer], [float(first), float(second)], lambda _: constants
        )


def _reduce(work: Work, column: Any, device: torch.device) -> Tensor:
    partials = _empty(device, 2, work.layout.chunks)
    shape = of_device(device).reduce
    _over_chunks(sums.reduce, shape, work, [partials], [work.layout.chunks], lambda _: {"COLUMN": column})
    return partials


def _over_chunks(
    kernel: Any,
    shape: Shape,
    work: Work,
    pointers: Sequence[Tensor],
    numbers: Sequence[float],
    constants: Callable[[Any], dict[str, Any]],
    kind_of: Callable[[int], Any] = Kind.of,
    by_groups: Any = None,
) -> None:
    """One launch per kind of segment. ``constants``: of the kernel, by kind; those of the dtype are added. ``kind_of``: what
    the number of a kind stands for. ``by_groups``: of a step, the kernel for segments that fall into groups."""
    for launch in work.layout.launches:
        kind = kind_of(launch.kind)
        more: dict[str, Any] = {}
        if launch.strip:
            more = {"STRIP": launch.strip, **of_device(work.segments.device).options_of_groups}
        elif by_groups is not None:
            more = {"SHIFTED": launch.shifted}
        _launch(
            by_groups if launch.strip else kernel,
            (launch.chunks,),
            shape,
            _block_dtype(kind, launch, work.segments.device),
            work.segments,
            work.owners,
            *pointers,
            launch.first_chunk,
            *numbers,
            **constants(kind),
            **more,
            STORAGE=TYPES[kind.dtype],
            COMPUTE=TYPES[reference.compute_dtype(kind.dtype)],
        )


def _block_dtype(kind: Any, launch: Launch, device: torch.device) -> torch.dtype:
    """Of a block: smaller where groups' sums for each element take registers, or a random counter for each. Both take more
    than AMD has."""
    if not launch.strip:
        return reference.compute_dtype(kind.dtype) if launch.shifted else kind.dtype
    draws = kind.narrow or kind.rounding == "stochastic"
    return torch.float64 if draws and of_device(device).warp_size == 64 else reference.compute_dtype(kind.dtype)


def _second_stage(kernel: Any, grid: Sequence[int], work: Work, partials: Tensor, out: Tensor, *more: Any) -> None:
    shape = of_device(out.device).second_stage
    _launch(kernel, tuple(grid), shape, torch.float64, partials, out, work.layout.chunks, *more)


def _launch(
    kernel: Any, grid: tuple[int, ...], shape: Shape, dtype: torch.dtype, *arguments: Any, **constants: Any
) -> None:
    # Fused multiply-adds round once where the specification rounds twice.
    block = of_device(arguments[0].device).block(shape, dtype)
    kernel[grid](*arguments, **constants, BLOCK=block, num_warps=shape.warps, enable_fp_fusion=False)


def _empty(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device=device)


def _memory(plan: Plan | Shrinkage) -> PlanMemory:
    if plan.device_memory is None:
        plan.device_memory = PlanMemory(plan.device, plan.totals)
    return plan.device_memory


def _guard(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
