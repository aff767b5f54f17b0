"""Penalties and proximal operators beside independent formulas of plain torch, for comparing their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import regkernels as rk
from regkernels import prox
from tests.support.penalties import PENALTIES, away_from

STRENGTH = 0.37
KINKS = (0.0, *sorted({kink for penalty in PENALTIES.values() for kink in penalty.kinks}))


def factors(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(0.3, 1.7, 12, dtype=torch.promote_types(dtype, torch.float32)).reshape(3, 4)


FACTORS = factors()

Function = Callable[[Any, Tensor], Tensor]


def row_norms(x: Tensor) -> Tensor:
    return x.square().sum(1).sqrt()


VALUES: dict[str, tuple[Function, Function]] = {
    "l1": (rk.l1_penalty, lambda s, x: s * x.abs().sum()),
    "l2": (rk.l2_penalty, lambda s, x: s * x.square().sum()),
    "elastic net": (
        lambda x, s: rk.elastic_net_penalty(x, s, 0.2),
        lambda s, x: s * x.abs().sum() + 0.2 * x.square().sum(),
    ),
    "weighted": (lambda x, s: rk.l1_penalty(x, s, factors(x.dtype)), lambda s, x: s * (FACTORS * x.abs()).sum()),
    "rows": (rk.group_l1_penalty, lambda s, x: s * 2 * row_norms(x).sum()),
    "columns": (
        lambda x, s: rk.group_l1_penalty(x, s, dim=1, size=2, weight="ones"),
        lambda s, x: s * row_norms(x.T.reshape(2, 6)).sum(),
    ),
    "tensor": (
        lambda x, s: rk.group_l1_penalty(x, s, dim="tensor"),
        lambda s, x: s * math.sqrt(12) * x.square().sum().sqrt(),
    ),
    **{f"{key} penalty": (of.ours, lambda s, x, of=of: of.eager(x, s)) for key, of in PENALTIES.items()},
}


def firm(x: Tensor, lam: float, gamma: float, t: float) -> Tensor:
    inside = x.sign() * (x.abs() - t * lam).relu() / (1 - t / gamma)
    return torch.where(x.abs() <= gamma * lam, inside, x)


def scad(x: Tensor, lam: float, a: float, t: float) -> Tensor:
    middle = ((a - 1) * x - x.sign() * t * a * lam) / (a - 1 - t)
    small = x.sign() * (x.abs() - t * lam).relu()
    return torch.where(x.abs() <= lam * (1 + t), small, torch.where(x.abs() <= a * lam, middle, x))


def log_sum(x: Tensor, lam: float, eps: float, t: float) -> Tensor:
    a = torch.where(x.abs() <= t * lam / eps, 1.0, x.abs())  # convex for t * lam <= eps**2
    root = (a - eps) / 2 + ((a + eps).square() / 4 - t * lam).sqrt()
    return torch.where(x.abs() <= t * lam / eps, 0.0, x.sign() * root)


def l_half(x: Tensor, lam: float, t: float) -> Tensor:
    u = t * lam
    a = torch.where(x.abs() <= 1.5 * u ** (2 / 3), 3.0, x.abs())
    found = 2 / 3 * a * (1 + (2 / 3 * (-(3**1.5) / 4 * u * a**-1.5).acos()).cos())
    return torch.where(x.abs() <= 1.5 * u ** (2 / 3), 0.0, x.sign() * found)


def huber(x: Tensor, lam: float, delta: float, t: float) -> Tensor:
    return torch.where(x.abs() <= (1 + t * lam) * delta, x / (1 + t * lam), x - t * lam * delta * x.sign())


def shrunk_rows(x: Tensor, limit: float) -> Tensor:
    return x * (1 - limit / row_norms(x)).relu()[:, None]


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "soft_threshold": (lambda x: prox.soft_threshold(x, 0.3), lambda x: x.sign() * (x.abs() - 0.3).relu()),
    "identity": (lambda x: prox.soft_threshold(x, 0.0), lambda x: x * 1),
    "elastic_net": (lambda x: prox.elastic_net(x, 0.3, 0.5), lambda x: x.sign() * (x.abs() - 0.3).relu() / 1.5),
    "weighted_l1": (
        lambda x: prox.weighted_l1(x, 0.3, factors(x.dtype), step=0.7),
        lambda x: x.sign() * (x.abs() - 0.21 * FACTORS).relu(),
    ),
    "positive": (lambda x: prox.positive(x, 0.2), lambda x: (x - 0.2).relu()),
    "box": (lambda x: prox.box(x, -0.4, 0.7), lambda x: x.clamp(-0.4, 0.7)),
    "l0": (lambda x: prox.l0(x, 0.1), lambda x: torch.where(x.abs() > math.sqrt(0.2), x, 0.0)),
    "l_half": (lambda x: prox.l_half(x, 0.3, step=0.6), lambda x: l_half(x, 0.3, 0.6)),
    "mcp": (lambda x: prox.mcp(x, 0.3, gamma=2.5, step=0.8), lambda x: firm(x, 0.3, 2.5, 0.8)),
    "scad": (lambda x: prox.scad(x, 0.3, a=3.1, step=0.8), lambda x: scad(x, 0.3, 3.1, 0.8)),
    "log_sum": (lambda x: prox.log_sum(x, 0.2, eps=0.9, step=0.5), lambda x: log_sum(x, 0.2, 0.9, 0.5)),
    "huber": (lambda x: prox.huber(x, 0.9, delta=0.4, step=0.8), lambda x: huber(x, 0.9, 0.4, 0.8)),
    "group_l1": (lambda x: prox.group_l1(x, 0.4, step=0.8), lambda x: shrunk_rows(x, 0.64)),
    "prox of columns": (lambda x: prox.group_l1(x, 0.4, dim=1, weight="ones"), lambda x: shrunk_rows(x.T, 0.4).T),
    "sparse group": (
        lambda x: prox.group_l1(x, 0.2, l1=0.1),
        lambda x: shrunk_rows(x.sign() * (x.abs() - 0.1).relu(), 0.4),
    ),
    "max_norm": (lambda x: prox.max_norm(x, 0.8), lambda x: x * (0.8 / row_norms(x)).clamp(max=1.0)[:, None]),
    "unit_norm": (lambda x: prox.unit_norm(x), lambda x: x / row_norms(x)[:, None]),
}


def sample(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return away_from(KINKS, *shape)


def dual(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        value, change = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
        assert change is not None
        return value.clone(), change.clone()


def forward_over_backward(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    with forward_ad.dual_level():
        own = forward_ad.make_dual(x.clone().requires_grad_(), tangent)
        (slope,) = torch.autograd.grad(function(own), own, create_graph=True)
        change = forward_ad.unpack_dual(slope).tangent
        return torch.zeros_like(x) if change is None else change.detach().clone()


def batched_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As `torch.autograd.functional.jacobian(vectorize=True)`: the forward pass plain, the backward pass under vmap."""
    return torch.autograd.functional.jacobian(function, x, vectorize=True)


X, T = sample(3, 4), sample(3, 4).flip(0)
ANY: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "jvp": lambda f: jvp(f, (sample(3, 4),), (T,)),
    "dual": lambda f: dual(f, sample(3, 4), T),
    "dual without gradients": lambda f: torch.no_grad()(dual)(f, sample(3, 4), T),
    "jvp of jvp": lambda f: jvp(lambda x: jvp(f, (x,), (T,))[1], (sample(3, 4),), (T,)),
    "vmap": lambda f: vmap(f)(sample(2, 3, 4)),
    "vmap over the last dimension": lambda f: vmap(f, in_dims=2)(sample(3, 4, 2)),
    "vmap of vmap": lambda f: vmap(vmap(f, in_dims=1))(sample(2, 3, 2, 4)),
    "vmap of jvp": lambda f: vmap(lambda x: jvp(f, (x,), (T,)))(sample(2, 3, 4)),
    "jacrev": lambda f: jacrev(f)(sample(3, 4)),
    "jacfwd": lambda f: jacfwd(f)(sample(3, 4)),
    "hessian": lambda f: hessian(f)(sample(3, 4)),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f))(sample(3, 4)),
    "vmap of jacrev": lambda f: vmap(jacrev(f))(sample(2, 3, 4)),
    "jacrev of vmap": lambda f: jacrev(vmap(f))(sample(2, 3, 4)),
    "backward under vmap": lambda f: batched_backward(f, sample(3, 4)),
    "transposed": lambda f: jacrev(lambda x: f(x.T))(sample(4, 3)),
    "a constant": lambda f: grad(lambda x: x.sum() + f(sample(3, 4)).sum())(T),
}
OF_VALUES = {
    "grad": lambda f: grad(f)(sample(3, 4)),
    "vmap of grad": lambda f: vmap(grad(f))(sample(2, 3, 4)),
    "forward over backward": lambda f: forward_over_backward(f, sample(3, 4), T),
    "third derivative": lambda f: jacfwd(jacfwd(jacrev(f)))(X)[0],
}
