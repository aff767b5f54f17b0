"""Makes steps of regkernels: penalties by their proximal operator, clipping and sums in the same pass."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

import regkernels
from benchmarks.peers.peer import BETAS, EPS, WEIGHT_DECAY, Peer, Step, Sums, Task


def make(task: Task, params: Sequence[nn.Parameter]) -> Step:
    common = {"l1": task.l1, "max_grad_norm": task.max_grad_norm, "stats": task.stats}
    optimizer: regkernels.optim.SGD | regkernels.optim.AdamW
    if task.l2:
        common |= {"weight_decay": 2 * task.l2, "weight_decay_mode": "prox"}
    elif task.rule == "adamw":
        common["weight_decay"] = WEIGHT_DECAY
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* rounded to nearest")  # as the others round, which they are compared with
        if task.rule == "adamw":
            optimizer = regkernels.optim.AdamW(params, task.lr, BETAS, EPS, **common)
        else:
            optimizer = regkernels.optim.SGD(params, task.lr, task.momentum, **common)
    if not task.stats:
        return optimizer.step

    def step() -> Sums:
        optimizer.step()
        stats = optimizer.stats
        return Sums(stats.l1_norm, stats.squared_norm, stats.nonzeros)

    return step


def make_flat(task: Task, params: Sequence[nn.Parameter]) -> Step:
    flat = regkernels.FlatParameters(params)
    step = make(task, params)

    def run(flat: regkernels.FlatParameters = flat) -> object:  # parameters know the owner of their buffers weakly
        return step()

    return run


def find() -> str:
    return regkernels.__version__


PEERS = (
    Peer("regkernels", find, make, penalty="proximal"),
    Peer("regkernels, FlatParameters", find, make_flat, penalty="proximal"),
)
