"""Says how wide the kernels are launched, by architecture: one fixed table.

Nothing is tuned at run time: an update that is tried out has been done.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

from regkernels import reference


class Shape(NamedTuple):
    """Says how wide a launch is: warps per program, and how many 16-byte vectors of each buffer a thread holds at a time. ``stages``: how
    many blocks are on their way at a time, through shared memory; 1: none, and registers are loaded."""

    warps: int
    vectors: int
    stages: int = 1


class Architecture(NamedTuple):
    """Says how wide each of the kernels is launched on devices of an architecture."""

    warp_size: int
    update: Shape
    reduce: Shape
    elementwise: Shape
    second_stage: Shape
    options_of_groups: Mapping[str, int]  # Triton's options, for the step by groups
    registers_of_rows: (
        int  # at most, where a program holds few numbers for each element of a row; 0: as many as it takes
    )
    pairs: bool  # sums are pairs of float32, as float64 would take longer than memory
    registers_of_pairs: int  # at most, of a step with such sums; 0: as many as it takes

    def block(self, shape: Shape, dtype: torch.dtype) -> int:
        """Returns the elements of a block: a thread's vectors hold whole numbers of them, so every load is 16 bytes wide."""
        return shape.warps * self.warp_size * shape.vectors * (16 // dtype.itemsize)

    def adds_pairs(self, dtype: torch.dtype) -> bool:
        """Tells whether sums of numbers of a type are pairs of float32."""
        return self.pairs and reference.compute_dtype(dtype) == torch.float32

    def holding(self, elements: int, dtype: torch.dtype) -> Shape:
        """Returns the shape of a program that holds so many elements, a power of two, in 2 vectors of each thread."""
        return Shape(elements * dtype.itemsize // (2 * 16 * self.warp_size), 2)


# A read-only kernel needs more loads in flight per thread than an update, which has up to five buffers to read. Into registers ptxas
# would load one vector after another.
_NVIDIA = Architecture(
    warp_size=32,
    update=Shape(4, 1, stages=3),
    reduce=Shape(2, 2, stages=4),
    elementwise=Shape(4, 2),
    second_stage=Shape(16, 4),
    options_of_groups={"maxnreg": 255},  # else ptxas spills to have one program more at a time
    registers_of_rows=168,  # for three programs of 4 warps
    pairs=False,
    registers_of_pairs=0,
)
_SLOW_FLOAT64 = _NVIDIA._replace(pairs=True)
_RTX_50 = _SLOW_FLOAT64._replace(registers_of_pairs=168)  # else ptxas spills to have one program more at a time
_AMD = Architecture(
    warp_size=64,
    update=Shape(4, 1),
    reduce=Shape(4, 4),
    elementwise=Shape(4, 2),
    second_stage=Shape(8, 4),
    options_of_groups={},
    registers_of_rows=0,
    pairs=False,
    registers_of_pairs=0,
)

ARCHITECTURES = {
    "sm_80": _NVIDIA,
    "sm_86": _SLOW_FLOAT64,
    "sm_89": _SLOW_FLOAT64,
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA,
    "sm_120": _RTX_50,
    "gfx942": _AMD,
    "gfx950": _AMD,
}


@cache
def of_device(device: torch.device) -> Architecture:
    """Returns the entry of a device; the nearest of its maker for those that are not listed, and for the interpreter."""
    if device.type == "cpu":
        return _NVIDIA
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = properties.gcnArchName.split(":")[0]
        return ARCHITECTURES.get(name, _AMD._replace(warp_size=properties.warp_size))
    return ARCHITECTURES.get(f"sm_{properties.major}{properties.minor}", _NVIDIA)
