"""What catches mistakes that no result of `uses` shows: sizes that end at every place of a block, and options that nobody there has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import regkernels as rk
from tests.triton.ptx import uses
from tests.triton.ptx.uses import Outcome, Use

TAILS = [64 * k + 37 for k in range(32)]
"""Of weights: shorter and longer than the blocks, each ending elsewhere."""

OTHER_STRENGTHS = [
    {"lr": 0.1},
    {"lr": 0.05, "l1": 0.3, "maximize": True},
    {"lr": 0.1, "weight_decay": 0.3, "weight_decay_mode": "prox"},
    {"lr": 0.2, "l1": 0.1, "l1_mode": "decoupled", "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
]

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


def _with_other_strengths(run: Callable[[], Outcome]) -> Outcome:
    with patch.object(uses, "_STRENGTHS", OTHER_STRENGTHS):
        return run()


def _alone(penalty: Callable[[list[Tensor], float], Tensor], special: bool) -> Outcome:
    return uses._penalty(lambda tensors: penalty(tensors, 0.3), uses.SIZES, [torch.float64], special)


def _with(name: str, change: Callable[[Callable[[], Outcome]], Outcome], words: str) -> Use:
    (use,) = (use for use in uses.USES if use.name == name)
    return use._replace(name=f"{name} {words}", run=partial(change, use.run))


USES = [
    *(_with(name, _of_every_tail, "of every tail") for name in NAMES),
    *(_with(name, _with_other_strengths, "with other strengths") for name in NAMES[:2]),
    _with("step sgd float32 by groups", _with_other_strengths, "with other strengths"),
    *(
        Use(f"{penalty.__name__} float64 {special}", ("alone",), partial(_alone, penalty, special))
        for penalty in (rk.l1_penalty, rk.l2_penalty)
        for special in (False, True)
    ),
]
