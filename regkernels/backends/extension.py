"""Loads the compiled extension `regkernels._C`, or keeps the reason why there is none. Says what Python and C++ must agree on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regkernels import reference
from regkernels.backends import openmp
from regkernels.distributed.shards import held
from regkernels.table import segments
from regkernels.table.formats import DTYPES, ROUNDINGS
from regkernels.table.hyper import Hyper
from regkernels.warn import warn

INTERFACE = 10
"""The version of the extension's functions; kInterface in csrc/table.h."""

IN_PLACE, STAGED, WITHOUT_STATE, SPREAD = range(4)
SAME, MOVED, REBUILD = range(3)

CHUNK = 16384
"""Elements per unit of work, on which the last bits of sums depend; kChunk in csrc/table.h."""

C: Any = None
missing_because: str | None = None


def agreement() -> dict[str, int | list[str]]:
    """Returns what the extension's ``layout()`` must say: the names of csrc/lists.h, which stand at the places of their numbers."""
    return {
        "interface": INTERFACE,
        "chunk": CHUNK,
        "segment": list(segments.FIELDS),
        "hyper": list(Hyper._fields),
        "sums": list(segments.SUMS),
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in DTYPES],
        "roundings": list(ROUNDINGS),
        "rules": list(reference.RULES),
        "metrics": list(reference.METRICS),
        "penalties": list(reference.family.PENALTIES),
        "formulas": list(reference.VALUES),
    }


def disagreements(layout: Mapping[str, Any]) -> list[str]:
    """Says of each list that is another one in the extension where it begins to differ."""
    found = []
    for name, ours in agreement().items():
        theirs = layout.get(name)
        if theirs == ours:
            continue
        if theirs is None:
            found.append(f"{name}: csrc says nothing of it")
        elif isinstance(ours, int):
            found.append(f"{name}: csrc has {theirs}, Python has {ours}")
        else:
            place = 0
            while theirs[place : place + 1] == ours[place : place + 1]:
                place += 1
            there, here = (repr(names[place]) if place < len(names) else "nothing" for names in (theirs, ours))
            found.append(f"{name}: csrc has {there} at place {place}, counted from 0, Python has {here}")
    return found


failure_note = Path(__file__).parents[1] / "_build_failure.txt"

try:
    C = importlib.import_module("regkernels._C")
    _different = disagreements(C.layout())
    if _different:
        missing_because = "it was built from other sources than the Python files beside it: " + "; ".join(_different)
        C = None
except (ImportError, AttributeError) as error:
    # Where the installation could not build it, it left the compiler's words here.
    missing_because = failure_note.read_text().strip() if failure_note.exists() else str(error)
    C = None

HOW_TO_BUILD = (
    "To build it, install a C++17 compiler (Debian: apt-get install g++; macOS: xcode-select --install) and run "
    "`pip install --force-reinstall --no-deps regkernels`, in a checkout `pip install -e .`"
)

if C is None:
    # What an unsuccessful installation left behind says already what to do.
    explained = missing_because if failure_note.exists() else f"{missing_because}. {HOW_TO_BUILD}."
    warn(
        "regkernels runs without its compiled kernels: results are the same, but every step runs the eager reference, "
        f"which is many times slower. Reason: {explained}",
        RuntimeWarning,
    )


def _use_threads_of_torch() -> None:
    functions = openmp.functions()
    if functions is not None:
        C.use_runtime(*functions)
        return
    warn(
        "regkernels steps on one thread: no OpenMP runtime was found behind torch's libraries, so there are no threads to "
        "share with torch. Results are the same; large models step more slowly. Builds of torch from PyPI and conda-forge "
        "bring a runtime.",
        RuntimeWarning,
    )


if C is not None:
    _use_threads_of_torch()

_ended_threads = True


def _before_fork() -> None:
    global _ended_threads
    _ended_threads = C.end_waiting_threads()


def _after_fork_in_child() -> None:
    if not _ended_threads:
        C.use_one_thread()


if C is not None and hasattr(os, "register_at_fork"):
    # A child has none of the threads that wait for OpenMP's next region, and that region would wait for them for ever.
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def keeps_plans() -> bool:
    """Tells whether there is a fast check of addresses; without it every step rebuilds its plan.

    It reads tensors through a table of functions that torch publishes, of which another version of DLPack may make another one.
    """
    api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if C is None or api is None:
        return False
    try:
        C.Roster(api, (), [], [], [])
    except (RuntimeError, ValueError, TypeError):
        return False
    return True


def roster(parameters: Sequence[Tensor], modes: Sequence[int], slots: Sequence[int]) -> Any | None:
    """Makes the fast check of addresses; None where there is none, so that each step rebuilds its plan.

    ``modes``: IN_PLACE, STAGED, WITHOUT_STATE or SPREAD, and ``slots``: the segment, for each of ``parameters``.
    """
    if not keeps_plans():
        return None
    api = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    hints = [address for param in parameters for address in _objects_behind(param)]
    return C.Roster(api, tuple(parameters), list(modes), list(slots), hints)


def states(state: Any, entries: Sequence[tuple[Any, dict[str, Any], list[str], list[Any], list[bool]]]) -> Any | None:
    """Makes the fast check of the dictionary of states; None where there is none.

    ``entries``: for each parameter itself, its own dictionary, names and tensors in it, and of each whether it is a DTensor.
    """
    if not keeps_plans():
        return None
    return C.States(torch.Tensor.__dlpack_c_exchange_api__, state, list(entries))  # type: ignore[attr-defined]


def _objects_behind(param: Tensor) -> list[int]:
    """Returns addresses of the heap objects that make up a parameter and its gradient, as hints for prefetching."""
    grad = param.grad
    return [
        address
        for tensor in (param, param if grad is None else grad)
        for address in (id(tensor) - _HEADER, getattr(tensor, "_cdata", 0), _storage_behind(tensor))
    ]


_HEADER = 64
"""Bytes before an object in which Python keeps what belongs to it; a line of the cache."""


def _storage_behind(tensor: Tensor) -> int:
    """Returns the address of a tensor's storage; 0 where it has none, as sparse and uninitialised ones."""
    try:
        return held(tensor).untyped_storage()._cdata  # type: ignore[no-any-return]
    except (NotImplementedError, ValueError):
        return 0
