"""Says what memory each kernel may read and write: the tensors that it is given, and what their tables name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from regkernels.backends.triton.kernels import deferred, group_values
from regkernels.table import segments
from tests.triton.ptx.machine import Region

WRITTEN = {
    "update": {"partials": "w"},
    "update_resident": {"partials": "w"},
    "update_groups": {"partials": "w", "scratch": "rw"},
    "reduce": {"partials": "w"},
    "reduce_value": {"partials": "w"},
    "reduce_weighted": {"partials": "w"},
    "add_runs": {"of_runs": "w"},
    "add_totals": {"totals": "w"},
    "penalty": {"out": "w"},
    "square_sum": {"out": "w"},
    "total": {"out": "w"},
    "group_squares": {"partials": "w"},
    "group_norms": {"totals": "w"},
    "elementwise": {},
    "slope": {},
    "slope_weighted": {},
    "proximal": {},
    "compute_rows": {"slots": "rw", "rows": "w"},
    "group_gradient": {},
}
"""The arguments through which a kernel writes, or reads and writes; it reads through all others. A kernel that is not listed may do
both."""

UNKNOWN = 0x7FF4_DEAD_BEEF_0001
"""Bits of a float64 that stand for what was never written; no computation makes them."""


def unknown(device: torch.device, *shape: int) -> Tensor:
    """Takes the place of `regkernels.backends.triton.launch.empty`."""
    tensor = torch.empty(shape, dtype=torch.float64, device=device)
    tensor.view(torch.int64).fill_(UNKNOWN)
    return tensor


class _Buffer(NamedTuple):
    """A column of addresses in a table of segments, and what lies there."""

    column: int
    bytes: int
    reads: bool
    writes: bool


def regions(kernel: str, arguments: Mapping[str, Any], constants: Mapping[str, Any], programs: int) -> list[Region]:
    """Returns what a launch may touch. ``programs``: how many there are."""
    found = [_of_tensor(kernel, name, value) for name, value in arguments.items() if isinstance(value, Tensor)]
    if kernel in WRITTEN and "segments" in arguments:
        found += _of_segments(kernel, arguments, constants, programs)
    elif kernel in WRITTEN and "table" in arguments:
        found += _of_groups(kernel, arguments, constants, programs)
    elif kernel == "compute_rows":
        found += _of_programs(arguments["programs"].numpy())
    return _merged(found)


def _of_tensor(kernel: str, name: str, tensor: Tensor) -> Region:
    known = None
    allowed = WRITTEN[kernel].get(name, "r") if kernel in WRITTEN else "rw"
    if tensor.dtype == torch.float64 and tensor.is_contiguous():
        bits = tensor.detach().reshape(-1).view(torch.int64).numpy()
        if (bits == UNKNOWN).any():
            known = numpy.repeat(bits != UNKNOWN, 8)
    return Region(
        name,
        tensor.data_ptr(),
        tensor.numel() * tensor.element_size(),
        readable="r" in allowed,
        writable="w" in allowed,
        initialised=known,
    )


def _size(type: Any) -> int:
    return int(type.primitive_bitwidth) // 8


def _buffers(kernel: str, constants: Mapping[str, Any]) -> Iterator[_Buffer]:
    """Yields what a kernel reads and writes of each segment."""
    storage, compute = _size(constants["STORAGE"]), _size(constants["COMPUTE"])
    match kernel:
        case "update" | "update_resident" | "update_groups":
            yield _Buffer(segments.WEIGHT, storage, True, True)
            yield _Buffer(segments.GRADIENT, storage, True, False)
            for state in range(constants["STATES"]):
                yield _Buffer(segments.STATE0 + state, _size(constants["STATE"]), True, True)
            kept = {"remainder": 2, "master": 4}
            if constants["ROUNDING"] in kept:
                yield _Buffer(segments.KEPT, kept[constants["ROUNDING"]], True, True)
            if constants.get("PENALTY") == "weighted_l1":
                yield _Buffer(segments.L1_WEIGHT, compute, True, False)
        case "proximal":
            yield _Buffer(segments.WEIGHT, storage, True, True)
            for operand in range(constants["OPERANDS"]):
                yield _Buffer(segments.STATE0 + operand, _size(constants["OPERAND"]), True, False)
        case "reduce":
            column = constants["COLUMN"]
            yield _Buffer(getattr(column, "value", column), storage, True, False)
        case _:
            yield _Buffer(segments.WEIGHT, storage, True, False)
            if kernel in ("reduce_weighted", "slope_weighted"):
                yield _Buffer(segments.STATE0, compute, True, False)
            if kernel in ("elementwise", "slope", "slope_weighted"):
                yield _Buffer(segments.GRADIENT, storage, False, True)


def _of_segments(
    kernel: str, arguments: Mapping[str, Any], constants: Mapping[str, Any], programs: int
) -> Iterator[Region]:
    table, owners, first = arguments["segments"].numpy(), arguments["owners"].numpy(), arguments["first_chunk"]
    for segment in numpy.unique(owners[first : first + programs]):
        for buffer in _buffers(kernel, constants):
            name = f"{segments.FIELDS[buffer.column]} of segment {segment}"
            size = int(table[segment, segments.NUMEL]) * buffer.bytes
            yield Region(name, int(table[segment, buffer.column]), size, buffer.reads, buffer.writes)


def _of_groups(
    kernel: str, arguments: Mapping[str, Any], constants: Mapping[str, Any], programs: int
) -> Iterator[Region]:
    table, owners = arguments["table"].numpy(), arguments["owners"].numpy()
    first = arguments.get("first_program", 0)
    for index in numpy.unique(owners[first : first + programs]):
        of = dict(zip(group_values.FIELDS, map(int, table[index]), strict=True))
        norms = 8 * of["groups"]
        if kernel == "group_norms":
            yield Region(f"norms of tensor {index}", of["norms"], norms, readable=False, writable=True)
            continue
        size = of["numel"] * _size(constants["STORAGE"])
        yield Region(f"weight of tensor {index}", of["weight"], size)
        if kernel == "group_gradient":
            yield Region(f"out of tensor {index}", of["out"], size, readable=False, writable=True)
            yield Region(f"norms of tensor {index}", of["norms"], norms)


def _of_programs(table: numpy.ndarray[Any, Any]) -> Iterator[Region]:
    """Yields the numbers on the device that programs read. The first program's instructions follow the last program."""
    sizes = {deferred.FLOAT32.value: 4, deferred.FLOAT64.value: 8}
    for program in table[: table[0]].reshape(-1, len(deferred.PROGRAM)):
        of = dict(zip(deferred.PROGRAM, map(int, program), strict=True))
        width = deferred.INSTRUCTION.value
        for operation, place, *_ in table[of["code"] :][: of["length"] * width].reshape(-1, width).tolist():
            if operation in sizes:
                for address in table[of["inputs"] + place * of["count"] :][: of["count"]].tolist():
                    yield Region("a number of a row", address, sizes[operation])


def _merged(found: list[Region]) -> list[Region]:
    """Returns one region for all that are at the same place, as what is shrunk where it lies, with all their permissions."""
    by_place: dict[tuple[int, int], Region] = {}
    for region in found:
        before = by_place.get((region.address, region.size))
        if before is not None:
            region = before._replace(
                name=f"{before.name}, {region.name}",
                readable=before.readable or region.readable,
                writable=before.writable or region.writable,
            )
        by_place[region.address, region.size] = region
    return [region for region in by_place.values() if region.address and region.size]
