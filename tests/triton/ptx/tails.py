"""What catches mistakes that no result of `uses` shows: sizes that end at every place of a block, and options that nobody there has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import regkernels as rk
from tests.triton.ptx import rows, uses
from tests.triton.ptx.uses import Outcome, Use, _numbers

TAILS = [*uses.SIZES, *(31 * k + 5 for k in range(64))]
"""Of weights: further ones are shorter and longer than the blocks, each ending elsewhere, and at every place of a vector."""

OTHER_STRENGTHS = [
    {"lr": 0.1},
    {"lr": 0.05, "l1": 0.3, "l1_mode": "subgradient", "maximize": True},
    {"lr": 0.1, "weight_decay": 0.3, "weight_decay_mode": "prox"},
    {"lr": 0.2, "l1": 0.1, "l1_mode": "decoupled", "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
]

STRENGTHS_OF_GROUPS = [
    {"lr": 0.3, "l1": 0.4, "shrink_limit": 1.05, "weight_decay": 0.3, "weight_decay_mode": "prox"},
    {"lr": 0.1, "unit_norm": True, "group_l1": 0.0, "max_norm": None},
    {"lr": 0.1, "group_l1": 0.0, "positive": True, "weight_decay": 0.2, "weight_decay_mode": "cautious"},
    {"lr": 0.2, "group_l1": 3.0, "group_weight": "ones", "max_norm": None, "maximize": True},
]
"""Among them limits, bounds, and groups that become zero."""

BY_GROUPS = "step sgd float32 by groups"

NAMES = (
    "step momentum float32 with sums",
    "step momentum float32 clipped",
    "attach_prox SGD float64",
    "prox.soft_threshold float32",
    "l1_penalty with weights",
    "elastic_net_penalty float64",
)


def _of_every_tail(run: Callable[[], Outcome]) -> Outcome:
    found: Outcome = {}
    for begin in range(0, len(TAILS), len(uses.SIZES)):
        with patch.object(uses, "SIZES", TAILS[begin : begin + len(uses.SIZES)]):
            found |= {f"{name} from {begin}": tensor for name, tensor in run().items()}
    return found


def _with_strengths(strengths: list[dict[str, Any]], run: Callable[[], Outcome]) -> Outcome:
    with patch.object(uses, "_STRENGTHS", strengths):
        return run()


def _at_nan(run: Callable[[], Outcome]) -> Outcome:
    """With numbers that are none at other places of each tensor, and zeros below 0 in all of them."""
    calls = itertools.count()

    def numbers(shape: Any, dtype: torch.dtype, misaligned: bool = False, special: bool = False) -> Tensor:
        values = _numbers(shape, dtype, misaligned, special=True)
        values.view(-1)[::8] = -0.0
        return values.view(-1).roll(next(calls)).view(values.shape)

    with patch.object(uses, "_numbers", numbers):
        return _with_strengths(OTHER_STRENGTHS, run)


def _of_small_numbers(run: Callable[[], Outcome]) -> Outcome:
    """So that norms of groups are below 1."""
    with patch.object(uses, "_numbers", lambda *given, **options: _numbers(*given, **options) / 64):
        return run()


def _with_each_strength(run: Callable[[], Outcome]) -> Outcome:
    """Each kind of group with each of the strengths."""
    found: Outcome = {}
    for first in range(len(STRENGTHS_OF_GROUPS)):
        strengths = STRENGTHS_OF_GROUPS[first:] + STRENGTHS_OF_GROUPS[:first]
        found |= {f"{name} from {first}": tensor for name, tensor in _with_strengths(strengths, run).items()}
    return found


def _with_limit(run: Callable[[], Outcome]) -> Outcome:
    with patch.object(rk, "attach_prox", partial(rk.attach_prox, shrink_limit=1.01)):
        return run()


def _alone(penalty: Callable[[list[Tensor], float], Tensor]) -> Outcome:
    found: Outcome = {}
    for special in (False, True):
        outcome = uses._penalty(lambda tensors: penalty(tensors, 0.3), uses.SIZES, [torch.float64], special)
        found |= {f"{name} {special}": tensor for name, tensor in outcome.items()}
    return found


def _with(name: str, change: Callable[[Callable[[], Outcome]], Outcome], words: str) -> Use:
    (use,) = (use for use in uses.USES if use.name == name)
    return use._replace(name=f"{name} {words}", run=partial(change, use.run))


USES = [
    *(_with(name, _of_every_tail, "of every tail") for name in NAMES),
    *(_with(name, partial(_with_strengths, OTHER_STRENGTHS), "with other strengths") for name in NAMES[:2]),
    _with(BY_GROUPS, partial(_with_strengths, OTHER_STRENGTHS), "with other strengths"),
    _with(BY_GROUPS, _with_each_strength, "with each strength"),
    _with(BY_GROUPS, lambda run: _with_each_strength(partial(_of_small_numbers, run)), "of small numbers"),
    *(_with(name, _at_nan, "at NaN") for name in (*NAMES[:3], BY_GROUPS)),
    _with("attach_prox SGD float64", _with_limit, "with a limit"),
    *(use for use in uses.USES if use.name == "rows"),
    Use("awkward rows", ("rows",), rows.awkward),
    *(
        Use(f"{penalty.__name__} float64 of every tail", ("alone",), partial(_of_every_tail, partial(_alone, penalty)))
        for penalty in (rk.l1_penalty, rk.l2_penalty)
    ),
]
