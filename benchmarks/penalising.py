"""Makes the cases of penalties in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import nn

from benchmarks import building, shapes
from benchmarks.building import L1, L2
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import PENALTIES, Step
from benchmarks.peers.check import checked_penalty

DTYPES = (torch.float32, torch.bfloat16)


def cases(suite: str, scope: Scope, *, backward: bool) -> Iterator[Case]:
    for name in building.lists(scope, ["gpt2-small", "resnet50"], ["nanogpt"]):
        for dtype in DTYPES:
            yield case(suite, name, scope, dtype, backward=backward)


def case(suite: str, name: str, scope: Scope, dtype: torch.dtype, *, backward: bool) -> Case:
    """Makes a case. Nobody changes the weights, so all have the same ones. Gradients are allocated anew in each run."""
    of = shapes.LISTS[name]()
    elements = shapes.elements(of)
    params = cache(partial(building.parameters, of, scope, dtype))
    notes: dict[str, str] = {}

    def make(penalty_name: str) -> Contender:
        notes[penalty_name] = building.verified(checked_penalty(penalty_name, dtype, scope.device))
        run = penalising(penalty_name, params(), backward=backward)
        prepare = partial(drop_gradients, params())
        building.warm_up(run, prepare)
        return Contender(run, prepare)

    names = building.taking_part(building.in_time(PENALTIES, scope), scope)
    return Case(
        suite,
        f"elastic net, {building.dtype_name(dtype)}: {shapes.describe(name)}",
        {penalty_name: partial(make, penalty_name) for penalty_name in names},
        # Backward reads the weights again and writes gradients.
        bytes_moved=(3 if backward else 1) * dtype.itemsize * elements,
        memory=5 * dtype.itemsize * elements,  # with gradients, |w| and w * w kept for the backward pass, and a bit
        shapes=name,
        stream="update" if backward else "read",
        notes=notes,
    )


def penalising(name: str, params: list[nn.Parameter], *, backward: bool) -> Step:
    penalty = PENALTIES[name]
    if backward:
        return lambda: penalty(params, L1, L2).backward()
    return torch.no_grad()(lambda: penalty(params, L1, L2))


def drop_gradients(params: list[nn.Parameter]) -> None:
    for param in params:
        param.grad = None
