"""Makes steps of bitsandbytes with 32-bit states: CUDA kernels, on a CPU a loop of torch operations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.peers.around import around, no_coupled_decay, no_l1, only
from benchmarks.peers.peer import BETAS, EPS, WEIGHT_DECAY, Peer, Step, Task

NAME = "bitsandbytes"


def find() -> str:
    import bitsandbytes

    return str(bitsandbytes.__version__)


def make(task: Task, params: Sequence[nn.Parameter]) -> Step:
    from bitsandbytes import optim

    no_l1(task, NAME)
    no_coupled_decay(task, NAME)
    only(task, "momentum adamw", NAME)
    if task.rule == "momentum":
        optimizer = optim.SGD(params, task.lr, task.momentum, weight_decay=2 * task.l2, optim_bits=32)
    else:
        optimizer = optim.AdamW32bit(params, task.lr, BETAS, EPS, WEIGHT_DECAY)
    return around(task, params, optimizer.step)


PEER = Peer(NAME, find, make)
