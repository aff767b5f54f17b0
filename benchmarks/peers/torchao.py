"""Makes steps of torchao's pruning-aware training: a soft-threshold around any torch optimizer, on a second copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.peers.around import around
from benchmarks.peers.peer import Peer, Step, Task, Unsupported
from benchmarks.peers.torch_optimizers import optimizer

NAME = "torchao PAT"


def find() -> str:
    import torchao
    from torchao.prototype.pat.optim import PruneOptimizer  # noqa: F401

    return str(torchao.__version__)


def make(task: Task, params: Sequence[nn.Parameter]) -> Step:
    from torchao.prototype.pat.optim import PruneOptimizer

    if not task.l1:
        raise Unsupported("without L1 it is torch.optim alone")
    group = {"params": list(params), "prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": task.l1}
    pruning = PruneOptimizer(optimizer(task, [group], l2=task.l2, foreach=True))
    return around(task, params, pruning.step)


PEER = Peer(NAME, find, make, penalty="averaging")
