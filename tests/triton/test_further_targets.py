"""What takes the most registers, compiled for relatives of the architectures that are tested throughout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import engine
from tests.triton.driver import present
from tests.triton.kernel import Kernel
from tests.triton.traffic import wide_accesses
from tests.triton.updates import FURTHER, Update

MOST = (
    (Update("adam", torch.bfloat16), (100,)),
    (Update("amsgrad", torch.bfloat16, "stochastic", wide=False), (2, 104)),
    (Update("rmsprop_both", torch.float64), (2, 104)),
)
"""Steps, by elements and by rows."""


@pytest.mark.parametrize("architecture", FURTHER)
def test_nothing_is_spilled_and_16_bytes_are_moved_at_a_time(architecture: str) -> None:
    with present(architecture) as device:
        for update, shape in MOST:
            param = nn.Parameter(torch.ones(shape, dtype=update.dtype))
            param.grad = torch.ones_like(param)
            states = None if update.wide else torch.bfloat16
            options = {"max_norm": 1.0} if len(shape) > 1 else {}
            formats = {"param_rounding": update.rounding, "state_dtype": states}
            engine.make(update.rule, [param], lr=0.1, stats=True, **formats, **options).step()
    kernels = [Kernel(architecture, kernel) for kernel in device.compiled()]
    found = [kernel for kernel in kernels if kernel.is_step]
    assert len(found) == len(MOST)
    assert {kernel.name: kernel.usage.spilled for kernel in found} == {kernel.name: 0 for kernel in found}
    for kernel in found:
        read, written = wide_accesses(kernel)
        assert kernel.wide_loads >= read and kernel.wide_stores == written, kernel.name
