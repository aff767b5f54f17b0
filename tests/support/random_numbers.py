"""Philox4x32-10 in Python's integers, and what a step draws, read off what it stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim
from regkernels.distributed import index
from regkernels.table.segments import Runs
from tests.support import engine

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Counter, key and what comes out: Random123's known answers for philox4x32 of 10 rounds."""


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Salmon et al. (2011), figure 2 and table 2, one counter at a time."""
    right0, left0, right1, left1 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * right0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * right1, 1 << 32)
        right0, left0, right1, left1 = high1 ^ left0 ^ k0, low1, high0 ^ left1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return right0, left0, right1, left1


def documented(place: int, seed: int, stream: int, step: int, slot: int) -> int:
    """The 16 bits of one element."""
    counter, half = divmod(place, 8)
    word = philox((counter % (1 << 32), counter >> 32, step, slot), (seed, stream))[half // 2]
    return word >> 16 if half % 2 else word & 0xFFFF


@contextmanager
def placed(runs: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[None]:
    """Parameters are parts of larger ones. ``runs``: by their numbers of elements, the place and length of each run."""
    own = {numel: Runs(*map(torch.tensor, zip(*of_one, strict=True))) for numel, of_one in runs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "runs", lambda param, weight: own.get(weight.numel()))
        yield


def drawn(
    setting: engine.Setting, layouts: Sequence[Tensor], *, seed: int = 0, step: int = 1, slot: int = 0, **options: Any
) -> list[Tensor]:
    """All bits that step number ``step`` draws for parameters like ``layouts``, int64 in their shapes.

    ``slot``: 0 for the weights, 1 and 2 for the states of a rule. What is rounded to bfloat16 is 1 + low * 2^-23, which
    becomes 1 + 2^-7 instead of 1 where low and the random number add up to 2^16 or more: a bisection finds it. ``options``: more
    of the optimizer's, which must change no weight.
    """
    found = [torch.zeros(layout.shape, dtype=torch.int64) for layout in layouts]
    for bit in reversed(range(16)):
        tried = [value | 1 << bit for value in found]
        exact = [1 + (65536 - value).double() / 2**23 for value in tried]
        rounded = _rounded(setting, layouts, exact, seed, step, slot, options)
        found = [torch.where(r > 1, t, value) for value, t, r in zip(found, tried, rounded, strict=True)]
    return found


def _rounded(
    setting: engine.Setting,
    layouts: Sequence[Tensor],
    exact: Sequence[Tensor],
    seed: int,
    step: int,
    slot: int,
    more: Mapping[str, Any],
) -> list[Tensor]:
    """``exact`` after a step that rounds it stochastically and changes nothing else about it."""
    dtype = torch.float32 if slot else torch.bfloat16
    params = [nn.Parameter(torch.zeros_like(layout, dtype=dtype)) for layout in layouts]
    common = {"lr": 1.0, "seed": seed}
    kind: Callable[..., optim.Optimizer] = optim.SGD
    match slot:
        case 0:  # the weight is 0 - lr * (momentum * buffer + 0)
            names, options = ["momentum_buffer"], {"momentum": 1.0, "param_rounding": "stochastic"}
        case 1:  # the buffer is momentum * 0 + gradient
            names, options = ["momentum_buffer"], {"momentum": 0.5, "state_dtype": torch.bfloat16}
        case _:  # the average is alpha * 0 + gradient
            names, options = ["square_avg", "grad_avg"], {"centered": True, "alpha": 0.0, "state_dtype": torch.bfloat16}
            kind = optim.RMSprop
    optimizer = kind(params, **common, **options, **more)
    for param, value in zip(params, exact, strict=True):
        states = {name: torch.zeros_like(param, dtype=torch.float32) for name in names}
        param.grad = torch.zeros_like(param)
        (param.grad if slot else states[names[-1]]).copy_(value if slot else -value)
        optimizer.state[param] = {**states, "step": torch.tensor(step - 1.0)}
    with engine.active(setting):
        optimizer.step()
    return [(optimizer.state[param][names[-1]] if slot else param.detach()).float().cpu() for param in params]
