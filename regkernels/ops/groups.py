"""Registers the operators of the penalty on the norms of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.ops.library import dense, fake_gradients, keep, kept, register, second_derivatives, spread
from regkernels.reference import differentiable
from regkernels.reference.by_group import by_group, from_groups
from regkernels.table.grouping import GroupLayout, group_layout


def _groups(tensor: Tensor, dim: int | None, size: int) -> Any:
    """Counts the groups of a tensor: a symbol where its shape is one."""
    if dim is None or tensor.dim() == 0:
        return 1
    return tensor.shape[dim] // size


def _laid_out(
    params: Sequence[Tensor], strength: float, dim: int | None, size: int, weight: str
) -> tuple[list[GroupLayout], list[float]]:
    """Lays out dense tensors: where their groups lie, and what the norms of each tensor's groups are multiplied by."""
    layouts = [
        group_layout(w, "tensor" if dim is None else dim, size, f"params[{index}]") for index, w in enumerate(params)
    ]
    return layouts, [strength * layout.weight(weight) for layout in layouts]


def _group(params: Sequence[Tensor], strength: float, dim: int | None, size: int, weight: str) -> tuple[Tensor, Tensor]:
    validation.nonnegative("strength", strength)
    params = [dense(w) for w in params]
    layouts, scales = _laid_out(params, strength, dim, size, weight)
    sizes = [layout.groups for layout in layouts]
    norms = torch.empty(sum(sizes), dtype=torch.float64, device=params[0].device)
    value = backends.backend_for(norms.device).group_norms(params, layouts, scales, norms.split(sizes))
    return value, norms


def _group_gradient(
    upstream: Tensor, params: Sequence[Tensor], norms: Tensor, strength: float, dim: int | None, size: int, weight: str
) -> list[Tensor]:
    params = [dense(w) for w in params]
    layouts, scales = _laid_out(params, strength, dim, size, weight)
    out = [torch.empty_like(w) for w in params]
    if params:
        of_each = norms.split([layout.groups for layout in layouts])
        backends.backend_for(norms.device).group_gradient(params, layouts, scales, of_each, out, upstream)
    return out


def _save_group(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, *ctx.options = inputs
    _, norms = output
    ctx.mark_non_differentiable(norms)
    keep(ctx, [norms, *params])


def _group_backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    norms, *params = kept(ctx)
    needed = ctx.needs_input_grad[0]
    _, dim, size, _ = ctx.options
    of_each = norms.split([_groups(w, dim, size) for w in params])
    wanted = [(w, of) for w, of, need in zip(params, of_each, needed, strict=True) if need]
    norms = torch.cat([of for _, of in wanted]) if len(wanted) < len(params) else norms
    gradients = torch.ops.regkernels.group_l1_gradient(upstream, [w for w, _ in wanted], norms, *ctx.options)
    return spread(gradients, needed), None, None, None, None


def _save_group_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, params, _, *ctx.options = inputs
    keep(ctx, [upstream, *params])


def _group_gradient_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Differentiates ``upstream * scale * w / ||w_g||``, with the norm as a function of w: differentiable once more."""
    upstream, *params = kept(ctx)
    strength, dim, size, weight = ctx.options

    def derivatives(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        wide = reference.compute_dtype(w.dtype)
        rows, directions = by_group(w.to(wide), dim, size), by_group(g.to(wide), dim, size)
        # A tensor: torch.compile cannot do with the root of a shape that is a symbol.
        scale = strength * rows.new_full((), rows.shape[1] if weight == "sqrt_size" else 1.0).sqrt()
        squares = (rows * rows).sum(1, keepdim=True)
        zero = squares == 0
        norm = torch.where(zero, 1.0, squares).sqrt()
        unit = rows / norm
        along = (unit * directions).sum(1, keepdim=True)
        turned = torch.where(zero, 0.0, (directions - unit * along) / norm)
        return scale * along.sum(), from_groups(upstream * scale * turned, w, dim)

    return *second_derivatives(upstream, params, gradients, derivatives), None, None, None, None, None


def _fake_group(
    params: Sequence[Tensor], strength: float, dim: int | None, size: int, weight: str
) -> tuple[Tensor, Tensor]:
    groups = sum(_groups(w, dim, size) for w in params)
    value = params[0].new_empty((), dtype=reference.penalty_dtype(params))
    return value, params[0].new_empty((groups,), dtype=torch.float64)


register(
    # Of all groups: the penalty, and the norms, one tensor's after the other's. dim None: each tensor is one group.
    "group_l1(Tensor[] params, float strength, int? dim, int size, str weight) -> (Tensor, Tensor)",
    _group,
    _fake_group,
    differentiable.group_l1,
    _save_group,
    _group_backward,
)
register(
    "group_l1_gradient(Tensor upstream, Tensor[] params, Tensor norms, float strength, int? dim, int size, str weight)"
    " -> Tensor[]",
    _group_gradient,
    fake_gradients,
    differentiable.group_gradient,
    _save_group_gradient,
    _group_gradient_backward,
)
