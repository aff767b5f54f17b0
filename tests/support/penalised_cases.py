"""Penalties and constraints that act element by element, as data; `tests.support.engine` trains with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regkernels import reference
from regkernels.reference.family import FAMILY
from tests.support import cases
from tests.support import penalised as definitions


def some_weights(weight: Tensor) -> Tensor:
    """Of each element's l1: a third of them are 0."""
    places = torch.arange(weight.numel(), dtype=reference.compute_dtype(weight.dtype)).view(weight.shape)
    return (places * 0.377 % 1.5 - 0.5).clamp(min=0).to(weight.device)


STRENGTHS = tuple(FAMILY)
"""Keys of the penalties that take the place of l1."""

SHAPES = {"mcp": 1.7, "scad": 2.3, "log_sum": 0.13, "huber": 0.61}
"""Others than the defaults."""


def penalised_by(key: str) -> dict[str, Any]:
    """Options of a penalty of the family."""
    return definitions.options(key, 0.37, SHAPES.get(key, definitions.PENALTIES[key].shape))


PENALTIES: dict[str, dict[str, Any]] = {
    "weighted": {"l1_weights": some_weights},
    "positive": {"positive": True},
    "box": {"box": (-0.7, 0.3)},
    "cautious": {"weight_decay_mode": "cautious"},
    **{key: penalised_by(key) for key in FAMILY},
    "bounded huber": {"huber": 0.37, "box": (-0.3, 0.7), "positive": True},
}
"""Options of what is applied element by element, beside l1; those of a strength of their own take its place."""


def penalised(rule: str, penalty: str, weight_decay_mode: str = "prox") -> tuple[cases.Case, dict[str, Any]]:
    """A case and what to train it with; without a metric only what needs none."""
    mode = cases.l1_modes(rule)[0]
    case = cases.Case(rule, mode, "decoupled" if mode != "prox" else weight_decay_mode)
    own = PENALTIES[penalty]
    return case, {**own, "l1": 0.0} if own.keys() & set(STRENGTHS) else own


def of_any_bits(penalty: str, count: int) -> Iterator[tuple[cases.Case, cases.Model, dict[str, Any]]]:
    """Yields cases of every size of step, with ``count`` bit patterns for gradients and half of the weights."""
    for dtype, rule, lr in (
        (torch.float32, "sgd", 1.7),
        (torch.float64, "adam", 5.0),
        (torch.float32, "adagrad", 1e30),
    ):
        patterns = cases.every_pattern(dtype)[:count]
        order = torch.randperm(len(patterns))
        weight = torch.where(order % 2 == 0, patterns, torch.randn(len(patterns), dtype=dtype))
        case, options = penalised(rule, penalty)
        yield case, cases.model_of_one(weight, patterns[order]), {"lr": lr, **options}


PENALISED = [
    (rule, penalty)
    for rule, penalty in itertools.product(cases.RULES, PENALTIES)
    if not (rule in cases.WITHOUT_METRIC and "l1" in penalised(rule, penalty)[1])
]
