"""What tests of low-precision weights share."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels import optim
from tests.support import engine

KERNEL = engine.kernels(threads=(1,))[-1]
SETTINGS = [engine.REFERENCE, *engine.kernels(threads=(1,))]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KEEPING = [("remainder", BF16), ("master", BF16), ("master", F16)]
"""Roundings that keep something beside the weight, and its dtype."""


def stepped(setting: engine.Setting, optimizer: optim.Optimizer, *gradients: Tensor) -> None:
    """A step with these gradients, one for each parameter."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.to(param.dtype, copy=True)
    with engine.active(setting):
        optimizer.step()
