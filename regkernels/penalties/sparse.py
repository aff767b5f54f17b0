"""Offers penalties beyond L1 and L2: one fused pass over all parameters forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import reference, validation
from regkernels.distributed import flattened
from regkernels.ops.values import check_numbers
from regkernels.penalties.listed import (
    Params,
    evaluated,
    has_dtensor,
    listed_tensors,
    plain_strength,
    times,
    trainable,
    unique,
)
from regkernels.table import grouping
from regkernels.table.grouping import Dim, Weighting

__all__ = [
    "group_l1_penalty",
    "huber_penalty",
    "l0_penalty",
    "l_half_penalty",
    "log_sum_penalty",
    "mcp_penalty",
    "scad_penalty",
]


def l0_penalty(params: Params, strength: float | Tensor) -> Tensor:
    """Returns ``strength`` times the number of elements that are not zero. The gradient is 0 everywhere: it moves no weight.

    A number to report, or to compare models by. Arguments, result and errors as in `l1_penalty`.
    """
    return _penalty(params, "l0", strength, 0.0)


def l_half_penalty(params: Params, strength: float | Tensor) -> Tensor:
    """Returns ``strength * sum |w|**(1/2)``. The gradient is ``strength * sign(w) / (2 * sqrt|w|)``, and 0 at 0.

    It grows without bounds towards 0 and is 0 there. Arguments, result and errors as in `l1_penalty`. Source: Xu, Chang, Xu and
    Zhang (2012).
    """
    return _penalty(params, "l_half", strength, 0.0)


def mcp_penalty(params: Params, strength: float | Tensor, gamma: float = 3.0) -> Tensor:
    """Returns the minimax concave penalty: ``strength * |w| - w**2 / (2 * gamma)`` up to ``|w| = gamma * strength``, then constant.

    The constant is ``gamma * strength**2 / 2``; the gradient falls from ``strength * sign(w)`` at 0 to 0 there.
    ``gamma`` > 0, without unit. A ``strength`` that is a tensor gets the gradient of this value, which is not linear in it; it
    goes through eager operations, which take several passes. Other arguments, result and errors as in `l1_penalty`.
    Source: Zhang (2010).
    """
    return _penalty(params, "mcp", strength, gamma)


def scad_penalty(params: Params, strength: float | Tensor, a: float = 3.7) -> Tensor:
    """Returns the smoothly clipped absolute deviation: L1 up to ``|w| = strength``, constant beyond ``a * strength``.

    ``strength * |w|``, then ``(2 * a * strength * |w| - w**2 - strength**2) / (2 * (a - 1))``, then
    ``strength**2 * (a + 1) / 2``. The gradient falls from ``strength * sign(w)`` to 0 in between. ``a`` > 1, without unit. A
    ``strength`` that is a tensor: as in `mcp_penalty`. Other arguments, result and errors as in `l1_penalty`. Source: Fan and
    Li (2001).
    """
    return _penalty(params, "scad", strength, a)


def log_sum_penalty(params: Params, strength: float | Tensor, eps: float = 1.0) -> Tensor:
    """Returns ``strength * sum log(1 + |w| / eps)``. The gradient is ``strength * sign(w) / (eps + |w|)``, and 0 at 0.

    ``eps`` > 0 (at least 1.2e-38), in units of the weights. Other arguments, result and errors as in `l1_penalty`. Source:
    Candes, Wakin and Boyd (2008).
    """
    return _penalty(params, "log_sum", strength, eps)


def huber_penalty(params: Params, strength: float | Tensor, delta: float = 1.0) -> Tensor:
    """Returns ``strength * sum H(w)`` with ``H(w) = w**2 / 2`` up to ``|w| = delta``, then ``delta * (|w| - delta / 2)``.

    The gradient is ``strength * w``, clamped to ``strength * delta``. ``delta`` > 0 (at least 1.2e-38), in units of the weights.
    Other arguments, result and errors as in `l1_penalty`. Source: Huber (1964).
    """
    return _penalty(params, "huber", strength, delta)


def group_l1_penalty(
    params: Params,
    strength: float | Tensor,
    dim: Dim = 0,
    size: int = 1,
    weight: Weighting = "sqrt_size",
) -> Tensor:
    """Returns ``strength * sum weight_g * ||w_g||_2`` over groups of elements: the group lasso.

    The gradient is ``strength * weight_g * w / ||w_g||``, and 0 for a group that is zero. Norms are formed in float64.

    Args:
        params: as in `l1_penalty`, also where ranks hold parts of a group. All of them must have the dimension ``dim``.
        strength: as in `l1_penalty`.
        dim: each index of this dimension is a group: 0 for the rows of a matrix (output neurons, filters of a convolution), 1
            for its columns (inputs); negative from the end. "tensor": each parameter is one group.
        size: that many consecutive indices are a group instead of one, such as the features of an attention head.
        weight: what the norm of a group counts: the square root of its number of elements ("sqrt_size"), or 1 ("ones").

    Returns:
        0-dim tensor on the autograd graph; float64 where a parameter is, else float32. Twice differentiable.

    Raises:
        TypeError, ValueError: as `l1_penalty`, and naming a parameter that has no such dimension, or where ``size`` does not
            divide it.

    Source: Yuan and Lin (2006).
    """
    grouping.check(dim, size, weight)
    listed = listed_tensors(params)
    strength = plain_strength("strength", strength)
    if not torch.compiler.is_compiling():
        validation.nonnegative("strength", strength, wait=False)
        for name, tensor in zip(_names(params, len(listed)), listed, strict=True):
            grouping.group_layout(tensor, dim, size, name)
            flattened.refuse_groups(tensor, "group_l1_penalty", name)
    factor = 1.0 if isinstance(strength, Tensor) else float(strength)
    value = _of_groups(listed, factor, None if dim == "tensor" else dim, size, weight)
    return times(strength, value) if isinstance(strength, Tensor) else value


def _of_groups(listed: list[Tensor], strength: float, dim: int | None, size: int, weight: str) -> Tensor:
    chosen = unique(listed)
    if has_dtensor(listed):
        from regkernels.penalties.groups_over_ranks import group_l1  # which most programs do without

        return group_l1(listed, chosen, strength, dim, size, weight)
    tensors = [listed[index] for index in chosen]
    return torch.ops.regkernels.group_l1(tensors, strength, dim, size, weight)[0]  # type: ignore[no-any-return]


def _names(params: Params, count: int) -> list[str]:
    if isinstance(params, nn.Module):
        return [f"parameter {name!r}" for name, _ in trainable(params)]
    return [f"params[{index}]" for index in range(count)]


def _penalty(params: Params, kind: str, strength: float | Tensor, shape: float) -> Tensor:
    listed = listed_tensors(params)
    strength = plain_strength("strength", strength)
    if not torch.compiler.is_compiling():
        check_numbers(kind, strength, shape)
    function = torch.ops.regkernels.penalty_value
    if not isinstance(strength, Tensor):
        return evaluated([(function, (kind, float(strength), float(shape)))], listed)[0]
    if not reference.family.FAMILY[kind].linear:
        return evaluated([(reference.folded_concave_penalty, (kind, strength, shape))], listed)[0]
    return times(strength, evaluated([(function, (kind, 1.0, float(shape)))], listed)[0])
