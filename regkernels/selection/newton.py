"""Takes second-order steps: conjugate gradients with Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from regkernels.selection.objective import Objective

Product = Callable[[Tensor], Tensor]
_MOST_ITERATIONS = 500
_POWER_ITERATIONS = 20


def second_order(objective: Objective, params: list[nn.Parameter]) -> tuple[list[Tensor], Product]:
    """Returns the gradients of f by ``params`` at the present weights, and its Hessian by them times a flat vector."""
    _, gradients = objective.gradient(params, graph=True)
    connected = [(gradient, index) for index, gradient in enumerate(gradients) if gradient.requires_grad]

    def product(flat: Tensor) -> Tensor:
        if not connected:  # f is linear
            return torch.zeros_like(flat)
        vectors = parts(flat, params)
        images = torch.autograd.grad(
            [gradient for gradient, _ in connected],
            params,
            [vectors[index] for _, index in connected],
            retain_graph=True,
            allow_unused=True,
        )
        return flat_of(
            [torch.zeros_like(p) if image is None else image for p, image in zip(params, images, strict=True)]
        )

    return [gradient.detach() for gradient in gradients], product


def hessian_norm(objective: Objective) -> float:
    """Estimates the largest curvature of f at the present weights, from below by power iteration; > 0."""
    params = objective.params
    _, product = second_order(objective, params)
    # Fixed, so that no random number is drawn, and without a pattern that an eigenvector could be orthogonal to.
    vector = flat_of(
        [torch.arange(1, p.numel() + 1, dtype=p.dtype, device=p.device).mul(12.9898).sin() for p in params]
    )
    norm = 1.0
    for _ in range(_POWER_ITERATIONS):
        vector = product(vector / torch.linalg.vector_norm(vector))
        norm = torch.linalg.vector_norm(vector).item()
        if not 0 < norm < float("inf"):
            return 1.0
    return norm


def conjugate_gradients(product: Product, right: Tensor, tolerance: float) -> Tensor:
    """Solves ``product(x) = right`` for a positive definite product, to ``tolerance`` times the norm of ``right``.

    Where the product turns out not to be positive definite, the last point before, so that ``x`` is always a direction of descent.

    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.1.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    square = residual @ residual
    enough = max(tolerance, torch.finfo(right.dtype).eps) ** 2 * square
    for _ in range(min(2 * right.numel() + 10, _MOST_ITERATIONS)):
        if square <= enough:
            break
        image = product(direction)
        bend = direction @ image
        if not bend > 0:
            return x if x.any() else right
        step = square / bend
        x = x + step * direction
        residual = residual - step * image
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    return x


def flat_of(tensors: Sequence[Tensor]) -> Tensor:
    """Returns all elements, one tensor after the other."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undoes `flat_of`."""
    sizes = [tensor.numel() for tensor in like]
    return [part.view_as(tensor) for part, tensor in zip(flat.split(sizes), like, strict=True)]
