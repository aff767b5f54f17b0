"""Proximal operators, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import validation

__all__ = ["soft_threshold", "soft_threshold_"]


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """``sign(x) * max(|x| - threshold, 0)``, the proximal operator of ``threshold * sum |x|``.

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
    return torch.ops.regkernels.soft_threshold(x, float(threshold))  # type: ignore[no-any-return]


def soft_threshold_(x: Tensor, threshold: float) -> Tensor:
    """`soft_threshold` in place: changes ``x`` and returns it. Call it on parameters within ``torch.no_grad()``.

    Raises:
        RuntimeError: where autograd would have to record it (``x`` requires a gradient and gradients are enabled).
    """
    _check(x, threshold)
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "soft_threshold_ cannot be differentiated and x requires a gradient: call it within torch.no_grad(), "
            "or use soft_threshold"
        )
    compiling = torch.compiler.is_compiling()  # the compiler cannot trace what looks at memory
    if not compiling:
        validation.parameter(x, "x")
    if not compiling and x.is_neg():  # negated lazily: the memory holds -x
        x.copy_(soft_threshold(x, threshold))
    else:
        torch.ops.regkernels.soft_threshold_(x, float(threshold))
    return x


def _check(x: Tensor, threshold: float) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.dtype not in validation.WEIGHT_DTYPES:
        raise TypeError(f"x must be a dense float64, float32, float16 or bfloat16 tensor, got {x.layout}, {x.dtype}")
    if not torch.compiler.is_compiling():  # then the operator checks it
        validation.nonnegative("threshold", threshold)
