"""Specifies the step: a rule between two regularisation steps. Other files, here and in the kernels, name its parts by these numbers:

1. where the step is left out, nothing moves;
2. the gradient is scaled, by clipping, a scaler, and -1 to maximize;
3. coupled decay is added to it, ``g + weight_decay * w``;
4. then the subgradient of l1, ``g + l1 * sign(w)``;
5. decoupled decay multiplies the old weight by ``1 - lr * weight_decay``;
6. the rule says the move and the step s of each element;
7. the move is taken from the weight: z;
8. l1, or another penalty, is applied to z as a proximal operator of the step s;
9. proximal decay divides by ``1 + s * weight_decay``;
10. where the rule has a step per element, steps 8 and 9 take from a weight at most a limit, in units of lr;
11. constraints are kept, whatever step 10 has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regkernels.reference.elementwise import (
    at_most,
    clamp,
    divide,
    divides,
    divisor_of,
    limited,
    sign,
    soft_threshold,
    threshold_of,
)
from regkernels.reference.family import OPERATORS
from regkernels.reference.groups import group_step, of_norm, share
from regkernels.reference.rounding import random_bits, round_stochastically, split, widen
from regkernels.reference.rules import RULES, Share, itself
from regkernels.table.formats import compute_dtype
from regkernels.table.hyper import Hyper

if TYPE_CHECKING:
    from regkernels.table.grouping import GroupLayout


@torch.no_grad()
def update_(
    rule: str,
    weight: Tensor,
    gradient: Tensor,
    states: Sequence[Tensor],
    hyper: Hyper,
    rounding: str = "nearest",
    kept: Tensor | None = None,
    stream: int = 0,
    penalty: str = "plain",
    l1_weight: Tensor | None = None,
    layout: GroupLayout | None = None,
    places: Tensor | int = 0,
) -> None:
    """Makes one optimizer step of one tensor. Mutates ``weight``, ``states`` and ``kept``; ``gradient`` is read only.

    ``weight`` and ``gradient``: float64, float32, float16 or bfloat16, same shape and dtype, real. ``states``: as many as
    the rule has, in `compute_dtype`, or bfloat16, which is always rounded stochastically. ``rounding``: of a half-precision
    weight, one of `regkernels.table.formats.ROUNDINGS`; ``kept``: the int16 "remainder" or the float32 "master" copy.
    ``stream``: the parameter's number, which tells its random numbers from others'. ``penalty``: one of
    `regkernels.reference.family.PENALTIES`; ``l1_weight``: of each element's l1, in `compute_dtype`, for "weighted_l1"; ``layout``: of
    the groups in the weight's memory, for "group". ``places``: in the whole parameter, for random numbers; see `random_bits`.

    A step with ``lr == 0`` updates the states and leaves the weight's bits alone; one with ``skip`` changes nothing.
    """
    dtype = compute_dtype(weight.dtype)
    h = hyper.rounded(dtype)
    if h.skip:
        return
    w, g, wide = prepare(weight, gradient, states, h, rounding, kept)
    z, s = propose(rule, w, g, wide, h, itself if layout is None else partial(share, layout=layout, like=weight))
    if penalty == "plain":
        z = proximal_step(z, s, h)
    elif layout is None:
        z = penalised_step(penalty, z, s, h, l1_weight)
    else:
        z = group_step(z, s, h, of_norm(hyper, layout.size, dtype), layout, weight)
    store(z, wide, weight, states, hyper, rounding, kept, stream, places)


def prepare(
    weight: Tensor, gradient: Tensor, states: Sequence[Tensor], h: Hyper, rounding: str, kept: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Makes steps 2 to 4: brings weight, gradient and states to the compute type; states that have it
    already are those that are given."""
    dtype = compute_dtype(weight.dtype)
    w = widen(weight, rounding, kept)
    g = gradient.to(dtype) * h.scale
    if h.coupled_decay:
        g = g + h.coupled_decay * w
    if h.subgradient:
        g = g + h.subgradient * sign(w)
    return w, g, [state.to(dtype) for state in states]


def propose(
    rule: str, w: Tensor, g: Tensor, wide: Sequence[Tensor], h: Hyper, share: Share
) -> tuple[Tensor, Tensor | float]:
    """Makes steps 5 to 7: where the step leads to, and the step s. Mutates ``wide``, the states."""
    move, s = RULES[rule].apply(g, wide, h, share)
    decayed = w * h.decay
    if h.cautious:
        decayed = torch.where(opposed(move, w), w, decayed)
    return decayed - move, s


def store(
    z: Tensor,
    wide: Sequence[Tensor],
    weight: Tensor,
    states: Sequence[Tensor],
    hyper: Hyper,
    rounding: str,
    kept: Tensor | None,
    stream: int,
    places: Tensor | int,
) -> None:
    """Rounds what has been computed to ``weight``, ``states`` and ``kept``. States in the compute type hold it already."""
    seed, step = int(hyper.seed), int(hyper.step)
    for slot, (state, value) in enumerate(zip(states, wide, strict=True), start=1):
        if state.dtype == torch.bfloat16:
            state.copy_(round_stochastically(value, state.dtype, random_bits(state, seed, stream, step, slot, places)))
    if not hyper.rounded(z.dtype).lr:
        return
    if rounding == "stochastic":
        weight.copy_(round_stochastically(z, weight.dtype, random_bits(weight, seed, stream, step, 0, places)))
    elif rounding == "remainder":
        assert kept is not None
        for part, value in zip((weight, kept), split(z), strict=True):
            part.copy_(value)
    else:
        weight.copy_(z)
        if rounding == "master":
            assert kept is not None
            kept.copy_(z)


def proximal_step(z: Tensor, s: Tensor | float, h: Hyper, l1_weight: Tensor | None = None) -> Tensor:
    """Makes steps 8 to 10 of the specification: soft-threshold and proximal decay in the metric s, within the limit."""
    t = threshold_of(s, h)
    if l1_weight is not None:
        t = t * l1_weight
    # A soft-threshold takes no more than its threshold: that it is limited suffices, in one operation.
    p = soft_threshold(z, at_most(t, float(h.largest_shrink), like=z))
    if divides(h):
        p = limited(z, divide(p, divisor_of(s, h), like=z), float(h.largest_shrink))
    return p


def penalised_step(penalty: str, z: Tensor, s: Tensor | float, h: Hyper, l1_weight: Tensor | None) -> Tensor:
    """Makes steps 8 to 11: the penalty and proximal decay in the metric s, within the limit, then the bounds."""
    if penalty in OPERATORS:
        p = penalise(penalty, z, h.gain * s, divisor_of(s, h), float(h.strength), float(h.shape))
        p = limited(z, p, float(h.largest_shrink))
    else:
        p = proximal_step(z, s, h, l1_weight)
    return clamp(p, float(h.lower), float(h.upper))


def penalise(
    penalty: str, z: Tensor, t: Tensor | float, divisor: Tensor | float, strength: float, shape: float
) -> Tensor:
    """Applies the proximal operator of a penalty with step t, together with a proximal decay of strength d where ``divisor`` is
    ``1 + t * d``: prox(f + d/2 x**2) with step t is prox(f) with step t / (1 + t * d) of z / (1 + t * d)."""
    t = divide(t, divisor, like=z)
    u = t * strength
    z = divide(z, divisor, like=z)
    return torch.where(u > 0, OPERATORS[penalty](z, t, u, strength, shape), z)


def opposed(move: Tensor, w: Tensor) -> Tensor:
    """Tells whether a move works against the sign of its weight, which decay would do, too.

    Source: Chen et al., Cautious weight decay (2025), algorithm 1: decay where ``u * w >= 0``.
    """
    return ((move > 0) & (w < 0)) | ((move < 0) & (w > 0))
