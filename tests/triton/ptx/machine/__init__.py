"""Runs PTX on the CPU: a text, a grid, arguments and the memory that may be touched. Needs NumPy and nothing of regkernels.

Each basic block of the text becomes a Python function over arrays with an element per thread. Whatever no device defines ends the
run with a `Fault` that says where: memory out of bounds, misaligned, not permitted or never written, threads that race, barriers
that not all reach. An instruction that the machine does not know is `Unsupported`.
"""

from __future__ import annotations

from tests.triton.ptx.machine.execution import Tally, run
from tests.triton.ptx.machine.faults import Fault, Unsupported
from tests.triton.ptx.machine.regions import Region
from tests.triton.ptx.machine.translation import Code, translated

__all__ = ["Code", "Fault", "Region", "Tally", "Unsupported", "run", "translated"]
