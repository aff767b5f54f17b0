"""The penalties beyond L1 and L2: what they add to the loss, and their gradients.

Each has a *strength* and a *shape* (mcp's gamma, scad's a, log_sum's eps, huber's delta). `numbers` turns those, in float64,
into what the formulas need; the formulas are the same lines as csrc/values.h and the Triton kernels have. Gradients are equal
bit for bit; values are sums of terms in float64.

Sources: bridge penalty, Frank and Friedman (1993); SCAD, Fan and Li (2001); MCP, Zhang (2010); log-sum, Candes, Wakin and
Boyd (2008); Huber (1964); adaptive lasso, Zou (2006); group lasso, Yuan and Lin (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkernels.reference.elementwise import sign, square_root
from regkernels.reference.penalties import penalty_dtype
from regkernels.table.formats import compute_dtype

Numbers = tuple[float, float, float, float]
Root = Callable[[Tensor], Tensor]


class Value(NamedTuple):
    """The formulas of one kind of penalty, each of a tensor and four numbers (a, b, c, d)."""

    terms: Callable[[Tensor, Numbers], Tensor]
    """What each element adds, of its magnitude in float64."""
    slope: Callable[[Tensor, Numbers, Root], Tensor]
    """The gradient, in the compute type; a and b have the upstream gradient as a factor."""
    curvature: Callable[[Tensor, Numbers], Tensor]
    """The derivative of the slope, for gradients of gradients."""


def l0_terms(x: Tensor, n: Numbers) -> Tensor:
    return (x != 0).to(x.dtype)


def l0_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    return torch.zeros_like(w)


def l0_curvature(w: Tensor, n: Numbers) -> Tensor:
    return torch.zeros_like(w)


def l_half_terms(x: Tensor, n: Numbers) -> Tensor:
    return x.sqrt()


def l_half_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, *_ = n
    x = torch.where(w == 0, torch.ones_like(w), w.abs())
    return (a * sign(w)) / root(x)


def l_half_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, *_ = n
    x = torch.where(w == 0, torch.ones_like(w), w.abs())
    return torch.where(w == 0, torch.zeros_like(w), -0.5 * a / (x * x.sqrt()))


def folded_concave_terms(x: Tensor, n: Numbers) -> Tensor:
    """MCP and SCAD: slope a, that falls by b per unit beyond c, to nothing at d."""
    a, b, c, d = n
    m = torch.where(x > d, torch.full_like(x, d), x)
    over = torch.where(m > c, m - c, torch.zeros_like(x))
    return a * m - b * (over * over)


def folded_concave_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, b, c, d = n
    x = w.abs()
    over = torch.where(x > c, x - c, torch.zeros_like(x))
    result = sign(w) * (a - b * over)
    return torch.where(x > d, torch.zeros_like(w), result)


def folded_concave_curvature(w: Tensor, n: Numbers) -> Tensor:
    _, b, c, d = n
    x = w.abs()
    return torch.where((x > c) & (x <= d), torch.full_like(w, -b), torch.zeros_like(w))


def log_sum_terms(x: Tensor, n: Numbers) -> Tensor:
    inverse_eps, *_ = n
    return (x * inverse_eps).log1p()


def log_sum_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, _, c, _ = n
    return (a * sign(w)) / (w.abs() + c)


def log_sum_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, _, c, _ = n
    return -a * (w != 0) / (w.abs() + c) ** 2


def huber_terms(x: Tensor, n: Numbers) -> Tensor:
    delta, *_ = n
    m = torch.where(x > delta, torch.full_like(x, delta), x)
    return m * (x - 0.5 * m)


def huber_slope(w: Tensor, n: Numbers, root: Root) -> Tensor:
    a, _, c, _ = n
    low = torch.where(w < -c, torch.full_like(w, -c), w)
    clamped = torch.where(low > c, torch.full_like(w, c), low)
    return a * clamped


def huber_curvature(w: Tensor, n: Numbers) -> Tensor:
    a, _, c, _ = n
    return torch.where(w.abs() > c, torch.zeros_like(w), torch.full_like(w, a))


VALUES = {
    "l0": Value(l0_terms, l0_slope, l0_curvature),
    "l_half": Value(l_half_terms, l_half_slope, l_half_curvature),
    "folded_concave": Value(folded_concave_terms, folded_concave_slope, folded_concave_curvature),
    "log_sum": Value(log_sum_terms, log_sum_slope, log_sum_curvature),
    "huber": Value(huber_terms, huber_slope, huber_curvature),
}
"""In the order of csrc/penalties.h."""


class Penalty(NamedTuple):
    """One penalty with its strength and shape, as numbers in float64."""

    formulas: str
    """A key of `VALUES`."""
    scale: float
    """What the sum of the terms is multiplied by; 0 switches the penalty off, also where the sum is infinite."""
    value: Numbers
    slope: Numbers
    """a and b before they are multiplied by the upstream gradient."""

    def scaled(self, upstream: float) -> Numbers:
        """The numbers of the slope, for a gradient of ``upstream`` in the value."""
        a, b, c, d = self.slope
        return upstream * a, upstream * b, c, d


def penalty(kind: str, strength: float, shape: float) -> Penalty:
    """``kind``: "l0", "l_half", "mcp", "scad", "log_sum" or "huber"; ``shape`` is unused by the first two."""
    off, on = (0.0, 0.0, 0.0, 0.0), float(strength != 0)
    match kind:
        case "l0":
            return Penalty("l0", strength, off, off)
        case "l_half":
            return Penalty("l_half", strength, off, (0.5 * strength, 0.0, 0.0, 0.0))
        case "mcp":
            fall, end = 1.0 / shape, shape * strength
            return Penalty("folded_concave", on, (strength, 0.5 * fall, 0.0, end), (strength, fall, 0.0, end))
        case "scad":
            fall, end = 1.0 / (shape - 1.0), shape * strength
            return Penalty("folded_concave", on, (strength, 0.5 * fall, strength, end), (strength, fall, strength, end))
        case "log_sum":
            return Penalty("log_sum", strength, (1.0 / shape, 0.0, 0.0, 0.0), (strength, 0.0, shape, 0.0))
        case "huber":
            return Penalty("huber", strength, (shape, 0.0, 0.0, 0.0), (strength, 0.0, shape, 0.0))
    raise ValueError(f"there is no penalty {kind!r}")


def value_sum(penalty: Penalty, tensors: Sequence[Tensor]) -> float:
    """The sum of the terms of all elements of all tensors, in float64."""
    terms = VALUES[penalty.formulas].terms
    return sum(terms(w.detach().double().abs(), penalty.value).sum().item() for w in tensors)


def value_gradient(penalty: Penalty, weight: Tensor, upstream: float) -> Tensor:
    """The gradient in the type of ``weight``, rounded once from the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    numbers = torch.tensor(penalty.scaled(upstream), dtype=w.dtype, device="cpu").tolist()
    return VALUES[penalty.formulas].slope(w, tuple(numbers), square_root).to(weight.dtype)


def folded_concave_penalty(tensors: Sequence[Tensor], kind: str, strength: Tensor, shape: float) -> Tensor:
    """The value of "mcp" or "scad", differentiable in the strength as well as in the tensors: 0-dim."""
    wide = strength.to(device=tensors[0].device, dtype=torch.float64).reshape(())
    fall, start = (1.0 / shape, 0.0 * wide) if kind == "mcp" else (1.0 / (shape - 1.0), wide)
    total = torch.zeros_like(wide)
    for w in tensors:
        m = torch.minimum(w.double().abs(), shape * wide)
        over = (m - start).clamp_min(0.0)
        total = total + (wide * m - 0.5 * fall * (over * over)).sum()
    return total.to(penalty_dtype(tensors))


def scaled_total(total: float, scale: float, tensors: Sequence[Tensor]) -> Tensor:
    """``scale * total``, 0-dim; a scale of 0 switches it off, also where the total is infinite."""
    return torch.tensor(scale * total if scale else 0.0, dtype=penalty_dtype(tensors), device="cpu")


def check_refused(refused: float) -> None:
    if refused:
        raise ValueError(f"weights must be finite and not negative, but {refused:.0f} of their elements are not")


def weighted_sum(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> tuple[float, float]:
    """``sum factor * |w|``, where a factor of 0 leaves its element out; and how many factors are negative or not finite."""
    total = refused = 0.0
    for w, factor in zip(tensors, factors, strict=True):
        terms = factor.double() * w.detach().double().abs()
        total += torch.where(factor != 0, terms, torch.zeros_like(terms)).sum().item()
        refused += (~((factor >= 0) & (factor < float("inf")))).sum().item()
    return total, refused


def weighted_gradient(weight: Tensor, factors: Tensor, scale: float) -> Tensor:
    """``scale * factor * sign(w)`` in the type of ``weight``, with ``scale`` rounded to the compute type."""
    w = weight.to(compute_dtype(weight.dtype))
    scale = torch.tensor(scale, dtype=w.dtype, device="cpu").item()
    return ((scale * factors.to(w.dtype)) * sign(w)).to(weight.dtype)


def in_groups(tensor: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """A dense tensor's memory as (outer, groups, inner); see `regkernels.table.grouping`."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return flat.reshape(outer, groups, inner)


def group_norms(tensor: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """The Euclidean norm of each group of a dense tensor: float64 (groups,)."""
    x = in_groups(tensor, outer, groups, inner).double()
    return (x * x).sum(dim=(0, 2)).sqrt()


def group_factors(norms: Tensor, scale: float) -> Tensor:
    """``scale / norm``; 0 for a group that is zero, or where ``scale`` is."""
    factors = torch.full_like(norms, scale) / norms
    return torch.where((norms == 0) | (scale == 0), torch.zeros_like(norms), factors)


def group_gradient(tensor: Tensor, factors: Tensor, outer: int, groups: int, inner: int) -> Tensor:
    """``factor * w`` in the layout of ``tensor``, with factors rounded to the compute type."""
    wide = compute_dtype(tensor.dtype)
    w = in_groups(tensor, outer, groups, inner).to(wide)
    gradient = (factors.to(wide)[None, :, None] * w).to(tensor.dtype)
    return gradient.reshape(-1).as_strided(tensor.shape, tensor.stride())
