"""Measures weights in units of their own features, so that columns of any size and centre are solved and judged alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regkernels.selection.groups import Groups
from regkernels.selection.newton import flat_of, parts
from regkernels.selection.objective import Objective

_PROBES = 32
_MOST_UNPENALISED = 64
_TINY = 1e-300
NOTHING = 1e-13
"""What is left of a column that the unpenalised parameters explain, as a share of it, when only its rounding is left."""


class Coordinates:
    """Describes weights w and unpenalised parameters u by ``v = scale * w`` and ``u + shift @ w``, in which features have size one and no mean.

    Args:
        inverse: 1 / scale of each penalised weight, flat; 0 for weights whose feature says nothing that the unpenalised parameters do not.
        inverse_others: 1 / scale of each unpenalised parameter, flat.
        shift: by how much unpenalised parameters make up for a penalised one, (unpenalised, penalised); None for not at all.
        rounding: how much larger than by itself a feature is for what it adds to its mean; multiplies rounding errors.
    """

    def __init__(
        self, inverse: Tensor, inverse_others: Tensor, shift: Tensor | None = None, rounding: float = 1.0
    ) -> None:
        self.inverse, self.inverse_others, self.shift, self.rounding = inverse, inverse_others, shift, rounding
        self._live = None if bool(inverse.all()) else torch.cat([inverse != 0, torch.ones_like(inverse_others) != 0])
        self._all_inverse = torch.cat([inverse, inverse_others])

    @classmethod
    def plain(cls, objective: Objective) -> Coordinates:
        """Returns those of the parameters as they are."""
        own = flat_of([torch.ones_like(param) for param in objective.penalised])
        return cls(own.detach(), own.new_ones(sum(param.numel() for param in objective.unpenalised)))

    def like(self, params: list[nn.Parameter]) -> Coordinates:
        """Returns the same for parameters of another dtype."""
        shift = None if self.shift is None else self.shift.to(params[0].dtype)
        return Coordinates(
            self.inverse.to(params[0].dtype), self.inverse_others.to(params[0].dtype), shift, self.rounding
        )

    def push(self, flat: Tensor) -> Tensor:
        """Returns the move of the parameters that a move in these coordinates stands for; (..., parameters)."""
        own, others = flat.split([len(self.inverse), len(self.inverse_others)], dim=-1)
        own, others = own * self.inverse, others * self.inverse_others
        return torch.cat([own, others if self.shift is None else others - own @ self.shift.T], -1)

    def pull(self, flat: Tensor) -> Tensor:
        """Returns the gradient in these coordinates; the transposed of `push`."""
        return self.centred(flat) * self._all_inverse

    def square(self, flat: Tensor) -> float:
        """Returns the squared length of a move of the parameters, in these coordinates."""
        own, others = flat.double().split([len(self.inverse), len(self.inverse_others)])
        if self.shift is not None:
            others = others + self.shift.double() @ own
        own = torch.where(self.inverse == 0, 0.0, own / self.inverse.double())
        return (own.square().sum() + (others / self.inverse_others.double()).square().sum()).item()

    def centred(self, flat: Tensor) -> Tensor:
        """Returns the gradient with the features centred, in units of the weights; 0 where a feature says nothing."""
        if self.shift is not None:
            size = len(self.inverse)
            flat = torch.cat([flat[..., :size] - flat[..., size:] @ self.shift, flat[..., size:]], -1)
        return flat if self._live is None else torch.where(self._live, flat, 0.0)


def natural(objective: Objective, groups: Groups | None = None) -> Coordinates:
    """Returns the coordinates in which the features of a linear model have a mean square of one, and no part along those of the
    unpenalised parameters (no mean, where there is a bias).

    Sizes are estimated by products with random signs (Hutchinson), which any model gives without its matrix; to a fifth or so. Features of a
    group share a size, so that the penalty of the group stays one.
    """
    own = sum(param.numel() for param in objective.penalised)
    with objective.at_zero():
        probed, gram = _products(objective)
    squares, shift = probed.square().mean(0), None
    raw, others = squares.split([own, len(squares) - own])
    squares = raw
    if gram is not None:
        shift = torch.linalg.pinv(gram[:, own:], hermitian=True) @ gram[:, :own]
        squares = (probed[:, :own] - probed[:, own:] @ shift).square().mean(0)
    if groups is not None:
        raw, squares = (_shared(values, objective, groups) for values in (raw, squares))
    inverse = torch.where(squares <= NOTHING**2 * raw, 0.0, squares.clamp(min=_TINY).rsqrt())
    inverse_others = torch.where(others == 0, 1.0, others.clamp(min=_TINY).rsqrt())
    return Coordinates(inverse, inverse_others, shift, max(1.0, (raw.sqrt() * inverse).max().item()))


def _shared(squares: Tensor, objective: Objective, groups: Groups) -> Tensor:
    like = parts(squares, objective.penalised)
    return flat_of([groups.spread(groups.rows(part).mean(1), part) for part in like])


def _products(objective: Objective) -> tuple[Tensor, Tensor | None]:
    """Returns random signs times the features, (probes, parameters), and the features of the unpenalised parameters times all,
    (unpenalised, parameters); None where there are none or too many. One pass, for batches may be shuffled."""
    params = objective.params
    unpenalised = sum(param.numel() for param in objective.unpenalised)
    signs = torch.Generator().manual_seed(0)
    probed: Tensor | float = 0.0
    gram: Tensor | float = 0.0
    for inputs, _, share in objective.batches:
        output = objective.model(inputs)
        root = (share / len(output)) ** 0.5

        def against(weights: Tensor, output: Tensor = output) -> Tensor:
            gradients = torch.autograd.grad(output, params, weights, retain_graph=True, allow_unused=True)
            return flat_of([torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True)])

        draws = torch.randint(2, (_PROBES, *output.shape), generator=signs).to(output) * 2 - 1
        probed = probed + torch.stack([against(root * draw) for draw in draws])
        if 0 < unpenalised <= _MOST_UNPENALISED:
            gram = gram + torch.stack([against(root**2 * own) for own in _features(objective, inputs, output.detach())])
    assert isinstance(probed, Tensor)
    return probed, gram if isinstance(gram, Tensor) else None


@torch.no_grad()
def _features(objective: Objective, inputs: object, output: Tensor) -> list[Tensor]:
    """Returns by how much the output changes with each unpenalised parameter."""
    features = []
    for param in objective.unpenalised:
        flat, before = param.view(-1), param.detach().clone()
        for index in range(len(flat)):
            flat[index] += 1
            features.append(objective.model(inputs) - output)
            param.copy_(before)
    return features
