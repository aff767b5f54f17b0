"""Sends small tables to a device, without the host waiting for it."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor


def capturing() -> bool:
    """Tells whether what is launched now on the current device is recorded into a CUDA graph instead of being run."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_capturing(device: torch.device) -> bool:
    """Tells whether what is launched on ``device`` is recorded; that has to be the current one unless it is the CPU."""
    return device.type == "cuda" and capturing()


def stream(device: torch.device) -> int | None:
    """Names the current stream; None while it is captured.

    What was uploaded on one stream is not to be read on another, which need not have waited for it, and what a graph reads
    must not change after the capture.
    """
    if device.type == "cpu":
        return 0
    return None if is_capturing(device) else int(torch.cuda.current_stream(device).cuda_stream)


def upload(table: NDArray[Any], device: torch.device) -> Tensor:
    """Returns a copy in device memory, taken from page-locked memory on the current stream.

    A copy that is captured into a CUDA graph happens again at each replay, from the same memory: see `_set_apart`.
    """
    host = torch.from_numpy(table)
    if device.type == "cpu":
        return host.clone()
    if is_capturing(device):
        pinned = _set_apart(host)
    else:
        pinned = host.pin_memory()
        _provide_for_captures(host.nbytes)
    copy = torch.empty(host.shape, dtype=host.dtype, device=device)
    copy.copy_(pinned, non_blocking=True)
    return copy


def placed(numbers: Any, device: torch.device) -> Tensor:
    """Returns numbers on a device, float64: a tensor, or lists of what the host knows, as which backends hand out sums."""
    if isinstance(numbers, Tensor):
        return numbers.to(device, torch.float64)
    return upload(numpy.array(numbers, dtype=numpy.float64), device)


# Page-locked memory cannot be allocated during a capture in every version of torch, and no other can be copied from: some
# is in stock, filled up by every step that is not captured. Threads share it, and no two of them may cut off the same piece.
_CAPTURES, _LEAST, _ALIGNMENT = 8, 1 << 20, 64
_lock = threading.RLock()
_stock = torch.empty(0, dtype=torch.uint8, device="cpu")
_largest = 0
_kept: dict[bytes, Tensor] = {}


def _provide_for_captures(size: int) -> None:
    """Fills up the stock, so that a step with tables of ``size`` bytes can be captured."""
    global _stock, _largest
    with _lock:
        _largest = max(_largest, size)
        if len(_stock) < max(_LEAST // 2, _CAPTURES * _largest):
            size = max(_LEAST, 2 * _CAPTURES * _largest)
            _stock = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


def _set_apart(host: Tensor) -> Tensor:
    """Copies into page-locked memory that nobody else will write to again, for good.

    Nothing tells when a graph is gone: torch's is an object of the user's that was not asked, may be copied into another, and
    lets nobody know when it ends. What is kept is bounded by what there is to be told apart: tables of equal content share
    their memory, so that the same step takes no more however often it is captured.
    """
    global _stock
    key = hashlib.blake2b(host.numpy().tobytes() + str((host.dtype, tuple(host.shape))).encode()).digest()
    with _lock:
        kept = _kept.get(key)
        if kept is None:
            size = -(-host.nbytes // _ALIGNMENT) * _ALIGNMENT
            if size > len(_stock):
                kept = host.pin_memory()  # works with a torch that can do this during a capture
            else:
                kept, _stock = _stock[: host.nbytes].view(host.dtype).view(host.shape), _stock[size:]
                kept.copy_(host)
            _kept[key] = kept
        return kept
