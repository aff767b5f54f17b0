"""Makes steps of optimi (torch-optimi): Triton kernels on a GPU, foreach on a CPU, Kahan summation for half-precision weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.peers.around import around, no_l1
from benchmarks.peers.peer import BETAS, EPS, WEIGHT_DECAY, Peer, Step, Task

NAME = "optimi"


def find() -> str:
    from importlib.metadata import version

    import optimi  # noqa: F401

    return version("torch-optimi")


def make(task: Task, params: Sequence[nn.Parameter]) -> Step:
    import optimi

    no_l1(task, NAME)
    if task.rule != "adamw":
        return around(task, params, optimi.SGD(params, task.lr, task.momentum, weight_decay=2 * task.l2).step)
    if task.l2:
        return around(task, params, optimi.Adam(params, task.lr, BETAS, weight_decay=2 * task.l2, eps=EPS).step)
    return around(task, params, optimi.AdamW(params, task.lr, BETAS, WEIGHT_DECAY, EPS).step)


PEER = Peer(NAME, find, make)
