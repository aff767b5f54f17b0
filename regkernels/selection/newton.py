"""Takes second-order steps: conjugate gradients with Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from regkernels.selection.objective import Objective

Product = Callable[[Tensor], Tensor]
_MOST_ITERATIONS = 500


def second_order(objective: Objective, params: list[nn.Parameter]) -> tuple[list[Tensor], Product]:
    """Returns the gradients of f by ``params`` at the present weights, and its Hessian by them times a flat vector, or each row of a matrix."""
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
            is_grads_batched=flat.dim() == 2,
        )
        return flat_of(
            [torch.zeros_like(v) if image is None else image for v, image in zip(vectors, images, strict=True)],
            flat.dim() - 1,
        )

    return [gradient.detach() for gradient in gradients], product


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


def flat_of(tensors: Sequence[Tensor], leading: int = 0) -> Tensor:
    """Returns all elements, one tensor after the other; of tensors stacked along ``leading`` dimensions, those of each."""
    return torch.cat(
        [tensor.flatten(leading) if tensor.dim() > leading else tensor[..., None] for tensor in tensors], -1
    )


def parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undoes `flat_of`."""
    sizes = [tensor.numel() for tensor in like]
    return [
        part.reshape(*flat.shape[:-1], *tensor.shape) for part, tensor in zip(flat.split(sizes, -1), like, strict=True)
    ]


def norm_inf(tensors: list[Tensor]) -> float:
    """Returns the largest absolute value; NaN where there is one."""
    return torch.stack([tensor.abs().max() for tensor in tensors if tensor.numel()]).max().item()
