"""The compiled extension `regkernels._C`, or why there is none."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch  # loads libgomp.so.1, the one OpenMP runtime of the process; the extension then binds to it
from torch import Tensor

from regkernels import segments
from regkernels.hyper import Hyper

IN_PLACE, STAGED, WITHOUT_STATE = range(3)
SAME, MOVED, REBUILD = range(3)

C: Any = None
missing_because: str | None = None

try:
    from regkernels import _C as C

    if (
        tuple(C.layout()["segment"]) != segments.FIELDS
        or tuple(C.layout()["hyper"]) != Hyper._fields
        or tuple(C.layout()["sums"]) != segments.SUMS
    ):
        missing_because = "it was built from other sources than the Python files beside it"
        C = None
except ImportError as error:
    # Where the installation could not build it, it left the compiler's words here.
    failure = Path(__file__).with_name("_build_failure.txt")
    missing_because = failure.read_text().strip() if failure.exists() else str(error)

HOW_TO_BUILD = (
    "To build it, install a C++17 compiler (Debian: apt-get install g++; macOS: xcode-select --install) and run "
    "`pip install --force-reinstall --no-deps regkernels`, in a checkout `pip install -e .`"
)

if C is None:
    warnings.warn(
        f"regkernels runs without its compiled kernels: {missing_because}. Results are the same, but every step runs "
        f"the eager reference, which is many times slower. {HOW_TO_BUILD}.",
        RuntimeWarning,
        stacklevel=3,
    )


def roster(parameters: Sequence[Tensor], modes: Sequence[int], slots: Sequence[int]) -> Any | None:
    """The fast check of addresses; None where this torch publishes no DLPack table (then each step rebuilds its plan)."""
    api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if C is None or api is None:
        return None
    functions = _stable_abi()
    handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(parameters)) if functions else []
    hints = [address for param in parameters for address in _objects_behind(param)]
    return C.Roster(api, list(parameters), list(modes), list(slots), handles, functions, hints)


@functools.cache
def _stable_abi() -> list[int]:
    """Addresses of the functions of torch's stable C ABI that the roster uses, in its order; empty where one is missing."""
    names = ("get_data_ptr", "get_dim", "get_sizes", "get_strides", "get_dtype", "delete_tensor_object")
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=getattr(os, "RTLD_NOLOAD", 0) | ctypes.DEFAULT_MODE)
        found = [ctypes.cast(getattr(loaded, f"aoti_torch_{name}"), ctypes.c_void_p).value for name in names]
    except (OSError, AttributeError):
        return []
    usable = hasattr(getattr(torch._C, "_aoti", None), "unsafe_alloc_void_ptrs_from_tensors")
    return [address for address in found if address is not None] if usable else []


def _objects_behind(param: Tensor) -> list[int]:
    """Addresses of the heap objects that make up a parameter and its gradient, as hints for prefetching."""
    grad = param if param.grad is None else param.grad
    return [
        address
        for tensor in (param, grad)
        for address in (id(tensor), getattr(tensor, "_cdata", 0), getattr(tensor.untyped_storage(), "_cdata", 0))
    ]
