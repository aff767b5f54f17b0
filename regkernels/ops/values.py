"""Registers the operators of the penalties of single elements beyond L1 and L2, and of L1 with a weight for each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, transforms, validation
from regkernels.ops.library import dense, fake_gradients, fake_value, keep, kept, register, second_derivatives, spread
from regkernels.reference import differentiable


def check_numbers(kind: str, strength: Any, shape: Any) -> None:
    """Raises for a strength or shape that a penalty cannot have."""
    validation.nonnegative("strength", strength, wait=False)
    parameter = reference.family.FAMILY[kind].shape
    if parameter is not None and not parameter.allows(validation.finite(parameter.name, shape)):
        raise ValueError(f"{parameter.name} must be {parameter.bound}, got {shape}")


# --- the penalties of single elements ---


def _value(params: Sequence[Tensor], kind: str, strength: float, shape: float) -> Tensor:
    check_numbers(kind, strength, shape)  # again here: while torch.compile traces, numbers have no values yet
    penalty = reference.penalty(kind, strength, shape)
    return backends.backend_for(params[0].device).value(penalty, [dense(w) for w in params])


def _slope(upstream: Tensor, params: Sequence[Tensor], kind: str, strength: float, shape: float) -> list[Tensor]:
    weights = [dense(w) for w in params]
    if reference.family.FAMILY[kind].formulas.flat:
        return [torch.zeros_like(w) for w in weights]
    out = [torch.empty_like(w) for w in weights]
    if weights:
        penalty = reference.penalty(kind, strength, shape)
        backends.backend_for(upstream.device).value_gradient(penalty, weights, out, upstream)
    return out


def _save_value(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, *ctx.numbers = inputs
    keep(ctx, params)


def _value_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    wanted = [w for w, need in zip(kept(ctx), needed, strict=True) if need]
    return spread(torch.ops.regkernels.penalty_slope(upstream, wanted, *ctx.numbers), needed), None, None, None


def _save_slope(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, params, *ctx.numbers = inputs
    keep(ctx, [upstream, *params])


def _slope_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Differentiates ``upstream * slope(w)``: in eager operations, differentiable once more."""
    upstream, *params = kept(ctx)
    penalty = reference.penalty(*ctx.numbers)
    formulas = reference.VALUES[penalty.formulas]

    def derivatives(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        of_upstream = (g * formulas.slope(w, penalty.slope, torch.sqrt)).sum()
        return of_upstream, g * upstream * formulas.curvature(w, penalty.slope)

    return *second_derivatives(upstream, params, gradients, derivatives), None, None, None


# --- L1 with weights of its own for each element ---


def _factors(params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Brings the weights to the compute type and the layout of dense parameters; raises where they are no longer like these."""
    for w, factor in zip(params, weights, strict=True):
        validation.check_memory(factor, "a tensor of weights")
        if factor.shape != w.shape:
            raise ValueError(
                f"weights of shape {tuple(factor.shape)} cannot belong to a parameter of shape {tuple(w.shape)}"
            )
    return [
        torch.empty_like(w, dtype=reference.compute_dtype(w.dtype)).copy_(factor)
        if factor.dtype != reference.compute_dtype(w.dtype) or factor.stride() != w.stride() or factor.is_neg()
        else factor
        for w, factor in zip(params, weights, strict=True)
    ]


def _weighted(params: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> Tensor:
    validation.nonnegative("strength", strength)
    params = [dense(w) for w in params]
    return backends.backend_for(params[0].device).weighted(params, _factors(params, weights), strength)


def _weighted_differentiable(params: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> Tensor:
    for factor in map(transforms.innermost, weights):
        if factor.is_cpu and not transforms.unreadable(factor):
            reference.check_refused(float((~((factor >= 0) & (factor < float("inf")))).sum()))
    return differentiable.weighted(params, weights, strength)


def _weighted_gradient(
    upstream: Tensor, params: Sequence[Tensor], weights: Sequence[Tensor], strength: float
) -> list[Tensor]:
    params = [dense(w) for w in params]
    out = [torch.empty_like(w) for w in params]
    if params:
        factors = _factors(params, weights)
        backends.backend_for(upstream.device).weighted_gradient(params, factors, out, upstream, strength)
    return out


def _save_weighted(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, weights, ctx.strength = inputs
    keep(ctx, [*params, *weights])


def _weighted_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    half, saved = len(needed), kept(ctx)
    pairs = zip(saved[:half], saved[half:], needed, strict=True)
    wanted = [(w, factor) for w, factor, need in pairs if need]
    gradients = torch.ops.regkernels.weighted_l1_gradient(
        upstream, [w for w, _ in wanted], [factor for _, factor in wanted], ctx.strength
    )
    return spread(gradients, needed), [None] * half, None


def _save_weighted_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, params, weights, ctx.strength = inputs
    keep(ctx, [upstream, *params, *weights])


def _weighted_gradient_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    upstream, *saved = kept(ctx)
    half = len(saved) // 2

    def derivatives(w: Tensor, g: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return (g * (ctx.strength * factor * w.sign())).sum(), torch.zeros_like(w)

    of_upstream, of_params = second_derivatives(upstream, saved[:half], gradients, derivatives, saved[half:])
    return of_upstream, of_params, [None] * half, None


register(
    "penalty_value(Tensor[] params, str kind, float strength, float shape) -> Tensor",
    _value,
    fake_value,
    differentiable.value,
    _save_value,
    _value_backward,
)
register(
    "penalty_slope(Tensor upstream, Tensor[] params, str kind, float strength, float shape) -> Tensor[]",
    _slope,
    fake_gradients,
    differentiable.slope,
    _save_slope,
    _slope_backward,
)
register(
    "weighted_l1(Tensor[] params, Tensor[] weights, float strength) -> Tensor",
    _weighted,
    fake_value,
    _weighted_differentiable,
    _save_weighted,
    _weighted_backward,
)
register(
    "weighted_l1_gradient(Tensor upstream, Tensor[] params, Tensor[] weights, float strength) -> Tensor[]",
    _weighted_gradient,
    fake_gradients,
    differentiable.weighted_gradient,
    _save_weighted_gradient,
    _weighted_gradient_backward,
)
