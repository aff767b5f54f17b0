"""Makes steps of torch.optim: its three implementations, compiled steps, and the recipe that adds a penalty to the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.around import around, count_nonzeros, no_l1
from benchmarks.peers.compiling import compiled
from benchmarks.peers.peer import BETAS, EPS, WEIGHT_DECAY, Peer, Step, Sums, Task, Unsupported
from benchmarks.peers.penalties import Terms, terms

Params = Sequence[nn.Parameter]


def find() -> str:
    return str(torch.__version__)


def optimizer(task: Task, params: Params, *, l2: float, **how: Any) -> torch.optim.Optimizer:
    """Takes ``l2`` for a coupled weight decay, which has the 1/2 that ``l2`` has not."""
    lr = how.pop("lr", task.lr)
    if task.rule != "adamw":
        return torch.optim.SGD(params, lr, task.momentum, weight_decay=2 * l2, **how)
    if task.l2:
        return torch.optim.Adam(params, lr, BETAS, EPS, 2 * l2, **how)
    return torch.optim.AdamW(params, lr, BETAS, EPS, WEIGHT_DECAY, **how)


def compiled_step(task: Task, params: Params, *, l2: float) -> Callable[[], object]:
    """Compiles a step. The rate is a tensor, as torch advises: a scheduler's new value would otherwise be compiled anew."""
    how: dict[str, Any] = {"lr": torch.tensor(task.lr, device=params[0].device)}
    if task.rule == "adamw":
        # torch takes a tensor for the rate of a foreach Adam only together with this, on a CPU too.
        how["capturable"] = True
    own = optimizer(task, params, l2=l2, foreach=True, **how)

    def update() -> None:
        own.step()

    return compiled(update)


def plain(name: str, **how: Any) -> Peer:
    def make(task: Task, params: Params) -> Step:
        no_l1(task, "torch.optim")
        return around(task, params, optimizer(task, params, l2=task.l2, **how).step)

    return Peer(name, find, make)


def plain_compiled(name: str) -> Peer:
    def make(task: Task, params: Params) -> Step:
        no_l1(task, "torch.optim")
        return around(task, params, compiled_step(task, params, l2=task.l2))

    return Peer(name, find, make)


def recipe(name: str, terms: Terms, update_of: Callable[[Task, Params], Callable[[], object]]) -> Peer:
    """Does penalty, its backward, clipping, step, count. The loss itself, the same for everyone, is left out."""

    def make(task: Task, params: Params) -> Step:
        if not task.l1 and not task.l2:
            raise Unsupported("without a penalty it is torch.optim alone")
        # The norms that it logs are those in the loss, so nothing is summed after the update but the zeros.
        update = around(task._replace(stats=False), params, update_of(task, params))

        def step() -> Sums | None:
            penalty, absolute, square = terms(params, task.l1, task.l2)
            penalty.backward()
            update()
            return Sums(detached(absolute), detached(square), count_nonzeros(params)) if task.stats else None

        return step

    return Peer(name, find, make, penalty="subgradient")


def detached(term: Tensor | None) -> Tensor | None:
    return None if term is None else term.detach()


PEERS = (
    plain("torch for-loop", foreach=False, fused=False),
    plain("torch foreach", foreach=True),
    plain("torch fused", fused=True),
    plain_compiled("torch compiled"),
    recipe("recipe, torch foreach", terms, lambda task, params: optimizer(task, params, l2=0, foreach=True).step),
    recipe("recipe, torch fused", terms, lambda task, params: optimizer(task, params, l2=0, fused=True).step),
    recipe("recipe, torch compiled", compiled(terms), partial(compiled_step, l2=0)),
)
