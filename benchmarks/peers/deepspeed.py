"""Makes steps of DeepSpeed's CPUAdam: C++ with OpenMP, compiled when it is used first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.peers.around import around, no_l1, only
from benchmarks.peers.peer import BETAS, EPS, WEIGHT_DECAY, Peer, Step, Task, Unsupported

NAME = "DeepSpeed CPUAdam"


def find() -> str:
    import deepspeed
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load()
    except Exception as error:
        raise RuntimeError(f"its extension could not be compiled: {error}") from error
    return str(deepspeed.__version__)


def make(task: Task, params: Sequence[nn.Parameter]) -> Step:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    no_l1(task, NAME)
    only(task, "adamw", NAME)
    if any(p.device.type != "cpu" for p in params):
        raise Unsupported("works on a CPU only")
    decay = 2 * task.l2 or WEIGHT_DECAY
    optimizer = DeepSpeedCPUAdam(
        params, task.lr, betas=BETAS, eps=EPS, weight_decay=decay, adamw_mode=not task.l2, fp32_optimizer_states=True
    )
    return around(task, params, optimizer.step)


PEER = Peer(NAME, find, make)
