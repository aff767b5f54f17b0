"""Small tables on their way to a device, without the host waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched now is recorded into a CUDA graph instead of being run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream(device: torch.device) -> int | None:
    """Names the current stream; None while it is captured.

    What was uploaded on one stream is not to be read on another, which need not have waited for it, and what a graph reads
    must not change after the capture.
    """
    if device.type == "cpu":
        return 0
    return None if is_capturing(device) else int(torch.cuda.current_stream(device).cuda_stream)


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A copy in device memory, taken from page-locked memory on the current stream.

    A copy that is captured into a CUDA graph happens again at each replay, from the same memory. That is kept for good, as
    nothing tells when a graph is gone.
    """
    if device.type == "cpu":
        return host.clone()
    pinned = host.pin_memory()
    copy = torch.empty(host.shape, dtype=host.dtype, device=device)
    copy.copy_(pinned, non_blocking=True)
    if is_capturing(device):
        _captured.append(pinned)
    return copy


_captured: list[Tensor] = []
