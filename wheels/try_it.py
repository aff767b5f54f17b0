"""Tries the installed package: compiled, with torch's threads, the reference's bits, and children that compute.

Needs nothing but the package, so that whoever builds wheels elsewhere can run it: `python wheels/try_it.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

import regkernels

OPTIMIZERS = {
    "SGD": {"momentum": 0.9},
    "Adam": {},
    "AdamW": {},
    "RAdam": {},
    "RMSprop": {},
    "Adagrad": {},
    "Lion": {"l1_mode": "decoupled"},
}


def stepped(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns weights after three steps with what does not depend on a sum, which backends form in orders of their own."""
    torch.manual_seed(0)
    rounding = {"param_rounding": "stochastic", "seed": 1} if dtype.itemsize == 2 else {}
    params = [nn.Parameter(torch.randn(40, 999).to(dtype)) for _ in range(3)]
    # Lion's steps are signs: they have no metric in which groups could be shrunk.
    last = {"l1": 1e-3} if name == "Lion" else {"group_l1": 1e-2, "group_dim": 0}
    groups = [{"params": params[:2], "l1": 1e-2}, {"params": params[2:], **last}]
    optimizer = getattr(regkernels.optim, name)(groups, lr=1e-2, **OPTIMIZERS[name], **rounding)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape).to(dtype)
        optimizer.step()
    return params


def main() -> None:
    info = regkernels.info()
    place = Path(regkernels.__file__)
    assert info["backend"] == "cpp", info
    assert "site-packages" in place.parts, f"{place} is not the installed package"
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert regkernels.info()["threads"] == threads, regkernels.info()
    for name in OPTIMIZERS:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            compiled = stepped(name, dtype)
            with regkernels.backends.use("reference"):
                reference = stepped(name, dtype)
            for ours, theirs in zip(compiled, reference, strict=True):
                assert torch.equal(ours, theirs), f"{name}, {dtype}: other bits than the reference"
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            stepped("AdamW", torch.float32)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    sets = ", ".join(info["instruction_sets"])
    print(
        f"regkernels {info['version']} works: {info['processor']}, {sets}, Python {info['python']}, torch {info['torch']}"
    )


if __name__ == "__main__":
    sys.exit(main())
