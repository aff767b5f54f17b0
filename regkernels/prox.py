"""Offers proximal operators, as functions of tensors.

Each returns, for a penalty f, the x that minimises ``(x - v)**2 / 2 + step * f(x)``, where v is the tensor it is given: what an
optimizer of `regkernels.optim` does after its own step, by the same kernels. With ``lr = step`` and a gradient of zero,
``SGD`` gives the same bits.

All take float64, float32, float16 or bfloat16 tensors of any shape and strides, compute in float32 (float64 for float64), leave
the tensor as it is and return a new one; ``step=0`` returns it bit for bit, NaN stays NaN. All are differentiable once: the
derivative is 0 where an element is held at 0 or at a bound, and at a threshold what it is on the side of zero. They raise TypeError or ValueError for other tensors and for
numbers that are not allowed, naming them.

Of a `torch.distributed.tensor.DTensor` the result is one, too, spread over the ranks in the same way; each rank computes its own part, without a
message. Operators of groups take those whose groups are whole on the ranks, and refuse others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import transforms, validation
from regkernels.distributed.autograd import own, whole
from regkernels.distributed.sharded import check_whole_groups
from regkernels.distributed.shards import check_parameter, check_weight, held, is_dtensor
from regkernels.dynamo import outside_of_graphs
from regkernels.memory import is_dense
from regkernels.reference.family import FAMILY
from regkernels.table import grouping
from regkernels.table.grouping import Weighting
from regkernels.table.hyper import Hyper

__all__ = [
    "box",
    "elastic_net",
    "group_l1",
    "huber",
    "l0",
    "l_half",
    "log_sum",
    "max_norm",
    "mcp",
    "positive",
    "scad",
    "soft_threshold",
    "soft_threshold_",
    "unit_norm",
    "weighted_l1",
]


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """Returns ``sign(x) * max(|x| - threshold, 0)``, the proximal operator of ``threshold * sum |x|``.

    Args:
        x: float64, float32, float16 or bfloat16, any shape and strides. Not changed.
        threshold: >= 0, in units of ``x``; 0 returns ``x`` bit for bit. A constant to ``torch.compile``.

    Returns:
        A new tensor like ``x``; NaN stays NaN. What the threshold reaches is +0.0, never -0.0. Differentiable: the gradient passes where
        ``|x| > threshold``.

    Raises:
        TypeError, ValueError: for a threshold that is negative, infinite or NaN, and for other dtypes or layouts.

    Source: Donoho and Johnstone (1994); Parikh and Boyd, Proximal Algorithms (2014), section 6.5.2.
    """
    _check(x, threshold)
    if is_dtensor(x):
        return _on_parts(lambda part: soft_threshold(part, threshold), x)
    return torch.ops.regkernels.soft_threshold(x, float(threshold))  # type: ignore[no-any-return]


def soft_threshold_(x: Tensor, threshold: float) -> Tensor:
    """Applies `soft_threshold` in place: changes ``x`` and returns it. Call it on parameters within ``torch.no_grad()``.

    Raises:
        RuntimeError: where autograd would have to record it (``x`` requires a gradient and gradients are enabled).
    """
    _check(x, threshold)
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "soft_threshold_ cannot be differentiated and x requires a gradient: call it within torch.no_grad(), "
            "or use soft_threshold"
        )
    if is_dtensor(x):
        soft_threshold_(held(x), threshold)
        torch.autograd.graph.increment_version(x)
        return x
    if transforms.active():
        return x.copy_(soft_threshold(x, threshold))
    compiling = torch.compiler.is_compiling() or transforms.is_fake(x)  # the compiler cannot trace what looks at memory
    if not compiling:
        validation.parameter(x, "x")
    if not compiling and x.is_neg():  # negated lazily: the memory holds -x
        x.copy_(soft_threshold(x, threshold))
    else:
        torch.ops.regkernels.soft_threshold_(x, float(threshold))
    return x


def elastic_net(x: Tensor, l1: float, weight_decay: float, *, step: float = 1.0) -> Tensor:
    """Applies the operator of ``l1 * sum |x| + weight_decay / 2 * sum x**2``: ``soft_threshold(x, step * l1) / (1 + step * weight_decay)``.

    Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.3.
    """
    return _proximal(x, "l1", step, threshold=_number("l1", l1), decay=_number("weight_decay", weight_decay))


def weighted_l1(x: Tensor, strength: float, weights: Tensor, *, step: float = 1.0) -> Tensor:
    """Applies the operator of ``strength * sum weights * |x|`` (adaptive lasso). ``weights``: like ``x``, >= 0, float32 (float64 where x is)."""
    _check_tensor(x)
    check_weight(weights, x, "weights", "x")
    validation.l1_weight(held(weights), held(x), "weights", "x")
    if weights.requires_grad:
        raise ValueError("weights requires a gradient, which this operator does not give: detach() it")
    return _proximal(x, "weighted_l1", step, threshold=_number("strength", strength), l1_weight=weights)


def positive(x: Tensor, l1: float = 0.0, *, step: float = 1.0) -> Tensor:
    """Applies the operator of ``l1 * sum x`` over x >= 0: ``max(x - step * l1, 0)``."""
    return _proximal(x, "l1", step, threshold=_number("l1", l1), lower=0.0)


def box(x: Tensor, low: float, high: float) -> Tensor:
    """Projects onto ``low <= x <= high``; both may be infinite."""
    low, high = (bound + 0.0 for bound in validation.bounds((low, high), "(low, high)"))  # no -0
    return _proximal(x, "l1", 1.0, lower=low, upper=high)


def l0(x: Tensor, strength: float, *, step: float = 1.0) -> Tensor:
    """Applies the operator of ``strength * number of x != 0``: x where ``|x| > sqrt(2 * step * strength)``, else 0 (hard threshold).

    Source: Blumensath and Davies (2008).
    """
    return _penalised(x, "l0", strength, step)


def l_half(x: Tensor, strength: float, *, step: float = 1.0) -> Tensor:
    """Applies the operator of ``strength * sum sqrt |x|``: 0 below ``1.5 * (step * strength)**(2/3)``, not continuous there.

    Source: Xu et al. (2012), theorem 1; the root of its cubic equation is found by Newton's method.
    """
    return _penalised(x, "l_half", strength, step)


def mcp(x: Tensor, strength: float, *, gamma: float = 3.0, step: float = 1.0) -> Tensor:
    """Applies the operator of the minimax concave penalty: ``strength |x| - x**2 / (2 gamma)`` up to ``|x| = gamma * strength``, constant beyond.

    Continuous for ``step < gamma`` (firm threshold); a hard threshold from there on.

    Source: Zhang (2010).
    """
    return _penalised(x, "mcp", strength, step, gamma)


def scad(x: Tensor, strength: float, *, a: float = 3.7, step: float = 1.0) -> Tensor:
    """Applies the operator of the smoothly clipped absolute deviation: ``strength |x|`` up to ``|x| = strength``, constant from ``a * strength`` on,
    a parabola between. Continuous for ``step < a - 1``.

    Source: Fan and Li (2001).
    """
    return _penalised(x, "scad", strength, step, a)


def log_sum(x: Tensor, strength: float, *, eps: float = 1.0, step: float = 1.0) -> Tensor:
    """Applies the operator of ``strength * sum log(1 + |x| / eps)``. ``eps`` is in units of x; continuous for ``step * strength <= eps**2``.

    Source: Candes, Wakin and Boyd (2008); Prater-Bennette, Shen and Tripp (2022).
    """
    return _penalised(x, "log_sum", strength, step, eps)


def huber(x: Tensor, strength: float, *, delta: float = 1.0, step: float = 1.0) -> Tensor:
    """Applies the operator of ``strength * sum H(x)``, with H = x**2 / 2 up to ``|x| = delta`` and ``delta * (|x| - delta / 2)`` beyond."""
    return _penalised(x, "huber", strength, step, delta)


def group_l1(
    x: Tensor,
    strength: float,
    *,
    l1: float = 0.0,
    dim: int | str = 0,
    size: int = 1,
    weight: Weighting = "sqrt_size",
    step: float = 1.0,
) -> Tensor:
    """Applies the operator of ``strength * sum over groups of c ||x_group||_2`` (group lasso), and ``l1 * sum |x|`` (sparse group lasso).

    Args:
        dim: the groups are the indices along it: 0 rows, 1 columns; "tensor": all of ``x`` is one group.
        size: that many consecutive indices make one group.
        weight: c is the root of the number of elements of a group ("sqrt_size"), or 1 ("ones").

    Sources: Yuan and Lin (2006); Simon et al., A sparse-group lasso (2013); Yu (2013) for the order, first l1.
    """
    fields = {"threshold": _number("l1", l1), "group_strength": _number("strength", strength)}
    return _grouped(x, dim, size, step, weight, **fields)


def max_norm(x: Tensor, radius: float, *, dim: int | str = 0, size: int = 1) -> Tensor:
    """Projects each group onto the ball of a radius >= 0. Groups as in `group_l1`."""
    return _grouped(x, dim, size, 1.0, max_norm=_number("radius", radius))


def unit_norm(x: Tensor, *, dim: int | str = 0, size: int = 1) -> Tensor:
    """Scales each group to norm 1; groups of zeros stay zero. Groups as in `group_l1`."""
    return _grouped(x, dim, size, 1.0, unit_norm=1.0)


def _penalised(x: Tensor, penalty: str, strength: float, step: float, shape: float = 1.0) -> Tensor:
    """Applies the operator of a penalty of the family, after checking its strength and shape."""
    parameter = FAMILY[penalty].shape
    if parameter is not None:
        validation.shape(parameter, parameter.name, shape)
    return _proximal(x, penalty, step, strength=_number("strength", strength), shape=float(shape))


def _grouped(
    x: Tensor, dim: int | str, size: int, step: float, weight: Weighting = "sqrt_size", **fields: Any
) -> Tensor:
    """Applies an operator by groups, which lie as ``dim`` and ``size`` say; ``fields`` are those of `Hyper`."""
    _check_tensor(x)
    grouping.check(dim, size, weight)
    if is_dtensor(x):
        grouping.group_layout(x, dim, size, "x")  # type: ignore[arg-type]
        check_whole_groups(x, dim, size, "x")
        return _on_parts(lambda part: _grouped(part, dim, size, step, weight, **fields), x)
    dense = x if is_dense(x) else torch.empty(x.shape, device="meta")
    layout = grouping.group_layout(dense, dim, size, "x")  # type: ignore[arg-type]
    return _proximal(x, "group", step, layout=layout, group_by_size=float(weight == "sqrt_size"), **fields)


def _proximal(
    x: Tensor,
    penalty: str,
    step: float,
    *,
    threshold: float = 0.0,
    decay: float = 0.0,
    l1_weight: Tensor | None = None,
    layout: Sequence[int] = (0, 0, 0),
    **fields: float,
) -> Tensor:
    """Calls the registered operator, for a `DTensor` on what each rank holds, with a row made of the numbers."""
    _check_tensor(x)
    step = _number("step", step)
    if is_dtensor(x):
        l1_weight = None if l1_weight is None else held(l1_weight)
        numbers = {"threshold": threshold, "decay": decay, "l1_weight": l1_weight, **fields}
        return _on_parts(lambda part: _proximal(part, penalty, step, **numbers), x)  # type: ignore[arg-type]
    row = Hyper(lr=step, threshold=step * threshold, shrink_divisor=1.0 + step * decay, **fields)
    return torch.ops.regkernels.proximal(x, l1_weight, penalty, list(row), list(layout))  # type: ignore[no-any-return]


@outside_of_graphs
def _on_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies ``function`` to what each rank holds of a `DTensor`."""
    return whole([function(part) for part in own([x])], [x])[0]


def _number(name: str, value: float) -> float:
    """Checks that a number is not negative, and returns it; within a compiled graph it is not checked here."""
    return float(value) if torch.compiler.is_compiling() else validation.nonnegative(name, value)


def _check_tensor(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.dtype not in validation.WEIGHT_DTYPES:
        raise TypeError(f"x must be a dense float64, float32, float16 or bfloat16 tensor, got {x.layout}, {x.dtype}")
    if is_dtensor(x):
        check_parameter(x, "x")


def _check(x: Tensor, threshold: float) -> None:
    _check_tensor(x)
    if not torch.compiler.is_compiling():  # then the operator checks it
        validation.nonnegative("threshold", threshold)
