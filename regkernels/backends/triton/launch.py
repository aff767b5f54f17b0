"""Launches kernels: says which, on which chunks, with which constants. The host never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from regkernels import reference
from regkernels.backends.triton import architectures
from regkernels.backends.triton.architectures import Shape
from regkernels.backends.triton.kernels import sums
from regkernels.backends.triton.tables import Launch, Work

TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Step(NamedTuple):
    """Describes a kernel's launch over the chunks of a `Launch`."""

    kernel: Any
    shape: Shape
    dtype: torch.dtype  # by whose size the block is chosen
    pointers: Sequence[Tensor]
    numbers: Sequence[float]
    constants: dict[str, Any]


def over_chunks(
    kernel: Any,
    shape: Shape,
    work: Work,
    pointers: Sequence[Tensor],
    numbers: Sequence[float],
    constants: Callable[[Any], dict[str, Any]],
    kind_of: Callable[[int], Any] = reference.kinds.Kind.of,
    by_groups: Callable[[Any, Launch], Sequence[Step]] | None = None,
) -> None:
    """Launches a kernel once for each launch of the layout: once per kind of segment, cut and shift.

    ``constants``: those of the kernel, by kind; those of the dtype are added. ``kind_of``: what the number of a kind stands for.
    ``by_groups``: of a step, what is launched instead where segments fall into groups.
    """
    for each in work.layout.launches:
        kind = kind_of(each.kind)
        if by_groups is not None and each.cut.strip:
            steps = by_groups(kind, each)
        else:
            # A random counter for each element takes registers, which blocks of fewer elements leave.
            dtype = reference.compute_dtype(kind.dtype) if each.shifted else kind.dtype
            shifted = {} if by_groups is None else {"SHIFTED": each.shifted}
            steps = [Step(kernel, shape, dtype, pointers, numbers, shifted)]
        for step in steps:
            launch(
                step.kernel,
                (each.chunks,),
                step.shape,
                step.dtype,
                work.segments,
                work.owners,
                *step.pointers,
                each.first_chunk,
                *step.numbers,
                **constants(kind),
                **step.constants,
                STORAGE=TYPES[kind.dtype],
                COMPUTE=TYPES[reference.compute_dtype(kind.dtype)],
            )


def second_stage(kernel: Any, grid: Sequence[int], work: Work, partials: Tensor, out: Tensor, *more: Any) -> None:
    """Launches what adds the partial sums of chunks, in a fixed order, into ``out``; where there are many, those of runs of chunks."""
    shape = architectures.of_device(out.device).second_stage
    count = work.layout.chunks
    if work.runs is not None:
        rows, runs = partials.numel() // count, len(work.runs)
        of_runs = empty(out.device, rows, runs)
        launch(sums.add_runs, (runs, rows), shape, torch.float64, partials, of_runs, count, runs, work.runs)
        partials, count = of_runs, runs
    launch(kernel, tuple(grid), shape, torch.float64, partials, out, count, *more)


def launch(
    kernel: Any, grid: tuple[int, ...], shape: Shape, dtype: torch.dtype, *arguments: Any, **constants: Any
) -> None:
    """Launches ``grid`` programs of a kernel; ``dtype``: by whose size the block is chosen."""
    # Fused multiply-adds round once where the specification rounds twice.
    block = architectures.of_device(arguments[0].device).block(shape, dtype)
    kernel[grid](*arguments, **constants, BLOCK=block, num_warps=shape.warps, enable_fp_fusion=False)


def empty(device: torch.device, *shape: int) -> Tensor:
    """Returns memory for float64 numbers, without values."""
    return torch.empty(shape, dtype=torch.float64, device=device)


def reduced(work: Work, column: Any, device: torch.device, wanted: str) -> Tensor:
    """Returns partial sums of a column of the table, one for each chunk: float64, (sums, chunks). ``wanted``: which sums, as
    `kernels.sums.reduce` names them."""
    partials = empty(device, 2 if wanted == "both" else 1, work.layout.chunks)
    architecture = architectures.of_device(device)

    def constants(kind: Any) -> dict[str, Any]:
        pairs = architecture.adds_pairs(kind.dtype)
        return {"COLUMN": column, "WANTED": wanted, "PAIRS": pairs, "PIPELINE": architecture.reduce.stages}

    over_chunks(sums.reduce, architecture.reduce, work, [partials], [work.layout.chunks], constants)
    return partials


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a device the current one, which launches go to."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
