"""Does what a user writes around an optimizer that neither clips nor sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Step, Sums, Task, Unsupported


def around(task: Task, params: Sequence[nn.Parameter], update: Callable[[], object]) -> Step:
    """Puts ``update`` between clipping and logging, where the task has them."""
    if task.max_grad_norm is None and not task.stats:
        return update

    def step() -> Sums | None:
        if task.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(params, task.max_grad_norm)
        update()
        return sums(params) if task.stats else None

    return step


@torch.no_grad()
def sums(params: Sequence[nn.Parameter]) -> Sums:
    return Sums(total([p.abs().sum() for p in params]), total([(p * p).sum() for p in params]), count_nonzeros(params))


def count_nonzeros(params: Sequence[nn.Parameter]) -> Tensor:
    return total([p.count_nonzero() for p in params])


def total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum()


def no_l1(task: Task, name: str) -> None:
    if task.l1:
        raise Unsupported(f"{name} has no L1")


def only(task: Task, rules: str, name: str) -> None:
    if task.rule not in rules.split():
        raise Unsupported(f"{name} has no such rule: {task.rule}")


def no_coupled_decay(task: Task, name: str) -> None:
    if task.l2 and task.rule == "adamw":
        raise Unsupported(f"{name} has no Adam with an L2 penalty, only AdamW's decay")
