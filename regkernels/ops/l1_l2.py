"""Registers the operators of the L1 and L2 penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, validation
from regkernels.ops.library import dense, fake_gradients, fake_value, keep, kept, register, second_derivatives, spread
from regkernels.reference import differentiable


def _penalty(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    # Again here: while torch.compile traces, strengths have no values yet.
    validation.nonnegative("l1", l1)
    validation.nonnegative("l2", l2)
    return backends.backend_for(params[0].device).penalty([dense(w) for w in params], l1, l2)


def _penalty_gradient(upstream: Tensor, params: Sequence[Tensor], l1: float, l2: float) -> list[Tensor]:
    weights = [dense(w) for w in params]
    out = [torch.empty_like(w) for w in weights]
    if weights:
        backends.backend_for(upstream.device).penalty_gradient(weights, out, upstream, l1, 2.0 * l2)
    return out


def _save_penalty(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, ctx.l1, ctx.l2 = inputs
    keep(ctx, params)


def _penalty_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    wanted = [w for w, needed in zip(kept(ctx), ctx.needs_input_grad[0], strict=True) if needed]
    gradients = torch.ops.regkernels.penalty_gradient(upstream, wanted, ctx.l1, ctx.l2)
    return spread(gradients, ctx.needs_input_grad[0]), None, None


def _save_penalty_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, params, ctx.l1, ctx.l2 = inputs
    keep(ctx, [upstream, *params])


def _penalty_gradient_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Differentiates ``upstream * (l1 * sign(w) + 2 * l2 * w)``: in eager operations, differentiable once more."""
    upstream, *params = kept(ctx)

    def derivatives(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return (g * (ctx.l1 * w.sign() + 2.0 * ctx.l2 * w)).sum(), g * (2.0 * ctx.l2 * upstream)

    return *second_derivatives(upstream, params, gradients, derivatives), None, None


register(
    "penalty(Tensor[] params, float l1, float l2) -> Tensor",
    _penalty,
    fake_value,
    differentiable.penalty,
    _save_penalty,
    _penalty_backward,
)
register(
    "penalty_gradient(Tensor upstream, Tensor[] params, float l1, float l2) -> Tensor[]",
    _penalty_gradient,
    fake_gradients,
    differentiable.penalty_gradient,
    _save_penalty_gradient,
    _penalty_gradient_backward,
)
