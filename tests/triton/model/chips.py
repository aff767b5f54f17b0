"""Holds what the model knows of chips: how much of everything they have, as data.

Operations per cycle of a multiprocessor are those of NVIDIA's CUDA C++ Programming Guide, section "Arithmetic Instructions", table
"Throughput of Native Arithmetic Instructions": 64 float32 operations on 8.0, 128 on 8.6 and later; 32, 2, 2, 64 float64 operations on
8.0, 8.6, 8.9, 9.0; 64 of integers, and as many comparisons of float32; 16 conversions from and to 64 bits where float64 is fast, else 2;
16 of special functions; 32 exchanges between threads. Warps, programs, registers and shared memory of a multiprocessor: the same guide,
"Technical Specifications per Compute Capability". Multiprocessors and bandwidths: NVIDIA's data sheets of the devices named. Clocks are
those of which the data sheets' float32 operations per second follow.

Assumptions, in no table or not checked against one: the rates of sm_100, taken to be those of sm_90 (its data sheet's float64 agrees),
and of sm_120, taken to be those of sm_89 but for integers, which its architecture paper says share all lanes of float32; that
conversions between types of 32 bits and fewer run at the rate of special functions; that products of integers share the lanes of the
other integer operations; that chips run at these clocks while memory is busy; latencies, and the part of a data sheet's bandwidth that
a copy reaches, the same for all.
"""

from __future__ import annotations

from typing import NamedTuple

COPIED = 0.9
"""Of a data sheet's bandwidth, what a copy of large tensors is assumed to reach."""

MEMORY_NS, CACHE_NS = 700.0, 160.0
"""Assumed for a load from a memory that is busy, and from the second-level cache, where the tables are."""


class Chip(NamedTuple):
    """Describes a device and its multiprocessors. Rates: operations of threads per cycle of a multiprocessor."""

    device: str
    multiprocessors: int
    gigahertz: float
    gigabytes_per_second: float  # by the data sheet
    warps: int  # of a multiprocessor at most
    programs: int
    shared_kilobytes: int
    fp64: int
    conversions: int  # from and to 64 bits; where float64 is slow they take its unit, else that of special functions
    fp32: int = 128
    integer: int = 64
    special: int = 16  # approximations of reciprocals and roots
    shared_memory: int = 32  # accesses
    issue: int = 128  # threads of four warps
    registers: int = 65536

    @property
    def has_slow_float64(self) -> bool:
        return self.fp64 < self.special

    @property
    def copied_bytes_per_cycle(self) -> float:
        """Returns what a multiprocessor moves per cycle while all of them copy."""
        return COPIED * self.gigabytes_per_second / self.multiprocessors / self.gigahertz

    def cycles(self, nanoseconds: float) -> float:
        return nanoseconds * self.gigahertz


CHIPS = {
    "sm_80": Chip("A100 SXM, 80 GB", 108, 1.41, 2039, 64, 32, 164, fp64=32, conversions=16, fp32=64),
    "sm_86": Chip("RTX 3090", 82, 1.695, 936, 48, 16, 100, fp64=2, conversions=2),
    "sm_89": Chip("RTX 4090", 128, 2.52, 1008, 48, 24, 100, fp64=2, conversions=2),
    "sm_90": Chip("H200 SXM", 132, 1.98, 4800, 64, 32, 228, fp64=64, conversions=16),
    "sm_100": Chip("B200", 148, 1.965, 8000, 64, 32, 228, fp64=64, conversions=16),
    "sm_120": Chip("RTX 5090", 170, 2.407, 1792, 48, 24, 100, fp64=2, conversions=2, integer=128),
}
