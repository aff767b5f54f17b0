"""Does what the threads of a warp do together. Generated code calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from tests.triton.ptx.machine.faults import Fault, Unsupported
from tests.triton.ptx.machine.types import i8, u2, u4

if TYPE_CHECKING:
    from tests.triton.ptx.machine.threads import Threads

Array = NDArray[Any]

_LANES = numpy.arange(32)


def _by_warp(threads: Threads, values: Any) -> Array:
    return numpy.broadcast_to(values, threads.lanes).reshape(-1, 32)


def _together(threads: Threads, site: int, members: Any, active: Any) -> Array:
    """Returns who is here, a row for each warp; raises unless these are the threads that each of them names."""
    here = _by_warp(threads, True if active is None else active)
    if active is None and numpy.ndim(members) == 0 and members == 0xFFFFFFFF:
        return here
    named = _by_warp(threads, members)[:, :, None] >> _LANES.astype(u4) & u4(1) != 0
    wrong = here & (named != here[:, None, :]).any(2)
    if wrong.any():
        which = threads.named(site, numpy.flatnonzero(wrong), 0)
        raise Fault(f"not the threads of the warp that it names: {which}")
    return here


def shuffle(
    threads: Threads, site: int, how: str, value: Any, lane: Any, clamp: Any, members: Any, active: Any
) -> tuple[Array, Array]:
    """Returns the value of another thread, and whether that one is within reach."""
    here = _together(threads, site, members, active)
    a, c = _by_warp(threads, value), _by_warp(threads, clamp).astype(i8)
    b = (_by_warp(threads, lane) & u4(31)).astype(i8)
    segment = c >> 8 & 31
    last = (_LANES & segment) | (c & 31 & ~segment)
    source = {"up": _LANES - b, "down": _LANES + b, "bfly": _LANES ^ b, "idx": (_LANES & segment) | (b & ~segment)}[how]
    within = source >= last if how == "up" else source <= last
    source = numpy.where(within, source, _LANES)
    elsewhere = here & ~numpy.take_along_axis(here, source, 1)
    if elsewhere.any():
        raise Fault(f"reads from a thread that is elsewhere: {threads.named(site, numpy.flatnonzero(elsewhere), 0)}")
    return numpy.take_along_axis(a, source, 1).reshape(-1), within.reshape(-1)


def reduce(threads: Threads, site: int, how: str, value: Any, members: Any, active: Any) -> Array:
    here = _together(threads, site, members, active)
    functions = {"add": numpy.add, "min": numpy.minimum, "max": numpy.maximum}
    functions |= {"and": numpy.bitwise_and, "or": numpy.bitwise_or, "xor": numpy.bitwise_xor}
    if (here.any(1) & ~here.all(1)).any():
        raise Unsupported(f"part of a warp in `{threads.code.sites[site].text}`")
    a = _by_warp(threads, value)
    return numpy.repeat(functions[how].reduce(a, axis=1, dtype=a.dtype), 32)


def vote(threads: Threads, site: int, how: str, value: Any, members: Any, active: Any) -> Array:
    here = _together(threads, site, members, active)
    yes = _by_warp(threads, value)
    match how:
        case "ballot":
            found = ((yes & here).astype(u4) << _LANES.astype(u4)).sum(1, dtype=u4)
        case "any":
            found = (yes & here).any(1)
        case _:
            found = (yes | ~here).all(1)
    return numpy.repeat(found, 32)


# --- matrices of 8 rows of 8 elements of 2 bytes, whose rows' addresses the threads of a warp give ---


def _rows(threads: Threads, site: int, address: Any, count: int, active: Any, of: Array) -> list[Array]:
    """Returns for each thread the address of row ``of`` of each matrix."""
    here = _together(threads, site, u4(0xFFFFFFFF), active)
    given = _by_warp(threads, address)
    if (given[here.any(1), : 8 * count] % 16 != 0).any():
        raise Fault(f"misaligned row: {threads.named(site, numpy.flatnonzero(here), 0)}")
    return [given[:, 8 * matrix + of].reshape(-1) for matrix in range(count)]


def load_matrices(threads: Threads, site: int, address: Any, active: Any, count: int, transposed: bool) -> list[Array]:
    """Gives thread t elements 2 * (t % 4) and the next of row t // 4; or these of a column, where ``transposed``."""
    if not transposed:
        rows = _rows(threads, site, address, count, active, _LANES // 4)
        place = threads.lane % u4(4) * u4(4)
        return [threads.shared.load(threads, site, row + place, active, 32, 1)[0] for row in rows]
    place = threads.lane // u4(4) * u4(2)
    halves = [
        [threads.shared.load(threads, site, row + place, active, 16, 1)[0] for row in rows]
        for rows in (_rows(threads, site, address, count, active, _LANES % 4 * 2 + k) for k in range(2))
    ]
    return [low.astype(u4) | high.astype(u4) << u4(16) for low, high in zip(*halves, strict=True)]


def store_matrices(threads: Threads, site: int, address: Any, active: Any, values: list[Any], transposed: bool) -> None:
    if not transposed:
        place = threads.lane % u4(4) * u4(4)
        for row, value in zip(_rows(threads, site, address, len(values), active, _LANES // 4), values, strict=True):
            threads.shared.store(threads, site, row + place, active, 32, [value])
        return
    place = threads.lane // u4(4) * u4(2)
    for k in range(2):
        rows = _rows(threads, site, address, len(values), active, _LANES % 4 * 2 + k)
        for row, value in zip(rows, values, strict=True):
            half = (value >> u4(16 * k)).astype(u2)
            threads.shared.store(threads, site, row + place, active, 16, [half])
