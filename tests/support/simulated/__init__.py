"""CUDA devices that are not there: tensors that say they lie on one, in the memory of the CPU, and streams that run late.

`devices` makes them for a block of code. Whatever torch is asked to do with such a tensor is put into the queue of a stream and is
done at the latest moment, or when the host waits, in the order that its streams and events demand and in no other. A table that is
read before it has arrived, after its memory has another use, or by a stream that has not waited for it is then a wrong number.

What a real device does beyond that is not simulated: graphs are recorded, not captured, and autograd knows nothing of such tensors.
"""

from __future__ import annotations

from tests.support.simulated.cuda import devices
from tests.support.simulated.simulation import Simulation, Waited
from tests.support.simulated.tensors import on_host

__all__ = ["Simulation", "Waited", "devices", "on_host"]
