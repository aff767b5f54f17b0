"""Says what kernels that walk over tensors have to read and write, and how much of it a thread takes at a time."""

from __future__ import annotations

from regkernels import reference
from regkernels.backends.triton.architectures import ARCHITECTURES
from regkernels.table.formats import KEPT_DTYPES
from tests.triton.kernel import Kernel

VALUES = ("reduce_value", "reduce_weighted", "slope", "slope_weighted")
"""The penalties beyond L1 and L2, element by element."""


def elements(kernel: Kernel) -> int:
    """That a thread has of a block."""
    shape = "elementwise" if kernel.function in ("proximal", *VALUES) else kernel.function
    return getattr(ARCHITECTURES[kernel.architecture], shape).vectors * 16 // kernel.dtype.itemsize


def stored_states(kernel: Kernel) -> list[int]:
    """Bytes of an element of each state, and of what the rounding keeps."""
    if not kernel.function.startswith("update"):
        return []
    rule = [kernel.state_dtype.itemsize] * len(reference.RULES[kernel.rule].state_names)
    return rule + ([KEPT_DTYPES[kernel.rounding].itemsize] if kernel.rounding in KEPT_DTYPES else [])


def bytes_moved(kernel: Kernel) -> tuple[list[int], list[int]]:
    """Read and written per element, buffer by buffer."""
    weight = [kernel.dtype.itemsize]
    match kernel.function:
        case "reduce" | "reduce_value" | "group_squares":
            return weight, []
        case "reduce_weighted":
            return [*weight, reference.compute_dtype(kernel.dtype).itemsize], []
        case "elementwise" | "slope" | "group_gradient":
            return weight, weight
        case "slope_weighted":
            return [*weight, reference.compute_dtype(kernel.dtype).itemsize], weight
        case "proximal":  # torch's states are in the weights' type
            return weight * (1 + reference.METRICS[kernel.metric].operands), weight
        case _ if kernel.rule == "still":
            return weight + ([4] if kernel.penalty == "weighted_l1" else []), weight
        case _:
            return 2 * weight + stored_states(kernel), weight + stored_states(kernel)


def wide_accesses(kernel: Kernel) -> tuple[int, int]:
    """Loads and stores of 16 bytes that a thread needs for a block, where each element is read and written once."""
    of_thread = kernel.block // (kernel.warps * ARCHITECTURES[kernel.architecture].warp_size)
    read, written = ([of_thread * size // 16 for size in sizes] for sizes in bytes_moved(kernel))
    return sum(read), sum(written)
