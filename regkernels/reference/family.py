"""Describes the family of penalties: what each of those of single elements beyond l1 is called, allows and consists of.

Whatever else the package knows of one, it reads here. `regkernels.reference.penalties` has their formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.reference import penalties as of
from regkernels.reference.penalties import Numbers, Root

SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest normal float32. Kernels compute in float32, where a parameter below it has lost its digits, or is 0."""


class Shape(NamedTuple):
    """Describes the second parameter of a penalty: a number above ``above``; a magnitude of weights is at least `SMALLEST`, too."""

    name: str
    """What functions call it; a param group puts the penalty's key before it."""
    default: float
    above: float = 0.0
    unit: str = ""
    """In what it is measured; none where it is a pure number."""

    @property
    def least(self) -> float:
        """Returns the smallest number that is allowed, if it is above ``above``."""
        return SMALLEST if self.unit else self.above

    @property
    def bound(self) -> str:
        """Says in words what a value must be."""
        if self.unit:
            return f"at least {SMALLEST:.2e}, the smallest normal float32"
        return f"greater than {self.above:g}"

    def allows(self, value: float) -> bool:
        return value > self.above and value >= self.least


class Formulas(NamedTuple):
    """Holds a value and its derivatives, by elements of a tensor and four numbers; several penalties may share them."""

    name: str
    """What csrc/lists.h and the Triton kernels call them."""
    terms: Callable[[Tensor, Numbers], Tensor]
    slope: Callable[[Tensor, Numbers, Root], Tensor]
    curvature: Callable[[Tensor, Numbers], Tensor]
    flat: bool = False
    """The slope is 0 everywhere: nobody needs to compute it."""


class Elementwise(NamedTuple):
    """Describes a penalty of single elements."""

    key: str
    """Of a param group. The operator has this name in `regkernels.prox`, and the value this one with ``_penalty`` behind it."""
    operator: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    """The proximal operator ``(v, t, u, strength, shape)``."""
    formulas: Formulas
    numbers: Callable[[Any, float], tuple[Numbers, Numbers]]
    """What a strength and a shape make the numbers of the terms and those of the slope; where the penalty is not linear in it,
    the strength may be a tensor."""
    sources: str
    shape: Shape | None = None
    convex: bool = False
    linear: bool = True
    """The value is the strength times the sum of the terms; otherwise the strength is among the numbers of the terms."""
    kink_at_zero: bool = True
    """The operator holds weights at zero."""
    like_l1_at_zero: bool = False
    """The subdifferential at zero is that of the L1 penalty of this strength."""

    @property
    def shape_key(self) -> str:
        """Names the shape as a param group does; empty where there is none."""
        return "" if self.shape is None else f"{self.key}_{self.shape.name}"


L0 = Formulas("l0", of.l0_terms, of.l0_slope, of.no_curvature, flat=True)
L_HALF = Formulas("l_half", of.l_half_terms, of.l_half_slope, of.l_half_curvature)
FOLDED_CONCAVE = Formulas(
    "folded_concave", of.folded_concave_terms, of.folded_concave_slope, of.folded_concave_curvature
)
LOG_SUM = Formulas("log_sum", of.log_sum_terms, of.log_sum_slope, of.log_sum_curvature)
HUBER = Formulas("huber", of.huber_terms, of.huber_slope, of.huber_curvature)


def _l0(strength: Any, shape: float) -> tuple[Numbers, Numbers]:
    return (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)


def _l_half(strength: Any, shape: float) -> tuple[Numbers, Numbers]:
    return (0.0, 0.0, 0.0, 0.0), (0.5 * strength, 0.0, 0.0, 0.0)


def _mcp(strength: Any, gamma: float) -> tuple[Numbers, Numbers]:
    fall, end = 1.0 / gamma, gamma * strength
    return (strength, 0.5 * fall, 0.0, end), (strength, fall, 0.0, end)


def _scad(strength: Any, a: float) -> tuple[Numbers, Numbers]:
    fall, end = 1.0 / (a - 1.0), a * strength
    return (strength, 0.5 * fall, strength, end), (strength, fall, strength, end)


def _log_sum(strength: Any, eps: float) -> tuple[Numbers, Numbers]:
    return (1.0 / eps, 0.0, 0.0, 0.0), (strength, 0.0, eps, 0.0)


def _huber(strength: Any, delta: float) -> tuple[Numbers, Numbers]:
    return (delta, 0.0, 0.0, 0.0), (strength, 0.0, delta, 0.0)


_MEMBERS = (
    Elementwise("l0", of.l0, L0, _l0, "Blumensath and Davies (2008)"),
    Elementwise("l_half", of.l_half, L_HALF, _l_half, "Xu, Chang, Xu and Zhang (2012); Frank and Friedman (1993)"),
    Elementwise(
        *("mcp", of.mcp, FOLDED_CONCAVE, _mcp, "Zhang (2010)"),
        shape=Shape("gamma", 3.0),
        linear=False,
        like_l1_at_zero=True,
    ),
    Elementwise(
        *("scad", of.scad, FOLDED_CONCAVE, _scad, "Fan and Li (2001)"),
        shape=Shape("a", 3.7, above=1.0),
        linear=False,
        like_l1_at_zero=True,
    ),
    Elementwise(
        *("log_sum", of.log_sum, LOG_SUM, _log_sum, "Candes, Wakin and Boyd (2008)"),
        shape=Shape("eps", 1.0, unit="weights"),
    ),
    Elementwise(
        *("huber", of.huber, HUBER, _huber, "Huber (1964); Parikh and Boyd (2014)"),
        shape=Shape("delta", 1.0, unit="weights"),
        convex=True,
        kink_at_zero=False,
    ),
)

FAMILY = {penalty.key: penalty for penalty in _MEMBERS}
"""By key, in the order of csrc/lists.h."""

OPERATORS = {key: penalty.operator for key, penalty in FAMILY.items()}

VALUES = {penalty.formulas.name: penalty.formulas for penalty in FAMILY.values()}
"""The formulas, in the order of csrc/lists.h."""

PENALTIES = ("plain", "l1", "weighted_l1", *FAMILY, "group")
"""What follows the rule, in the order of csrc/lists.h. "plain" is all that a row of numbers can say: soft-threshold and decay. "l1"
adds bounds and cautious decay, "weighted_l1" a strength per element; "group" acts on groups of elements."""
