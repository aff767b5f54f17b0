"""The other part of the problem: a penalty of some strength, as param-group keys, and how far weights are from a solution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import penalties, validation
from regkernels.optim import SGD
from regkernels.optim.penalty_keys import Penalties
from regkernels.reference.family import FAMILY
from regkernels.selection.belonging import check_belong, check_known
from regkernels.selection.coordinates import Coordinates
from regkernels.selection.groups import Groups
from regkernels.selection.maximum import checked_ratio
from regkernels.selection.newton import flat_of, norm_inf, parts
from regkernels.table.grouping import Weighting

KEYS = ("l1", "group_l1", *FAMILY)
LIKE_L1_AT_ZERO = ("l1", "group_l1", *(of.key for of in FAMILY.values() if of.like_l1_at_zero))
"""Their subdifferential at zero is that of the L1 (group L1) penalty, so that all-zero weights are stationary from lambda_max on."""


class Penalty:
    """``strength * (l1_ratio * P(w) + (1 - l1_ratio) / 2 * sum w**2) + weight_decay / 2 * sum w**2``, P named by a key.

    Args:
        key: of a param group of regkernels' optimizers; "l1": P is ``sum |w|``.
        l1_ratio: in (0, 1]; the share of the strength that P has.
        weight_decay: >= 0, the same for all strengths.
        options: further keys of the penalised param group, such as ``group_dim`` or ``mcp_gamma``.
        arguments: of the function that takes them, one of which may have been meant.
    """

    def __init__(
        self,
        key: str,
        l1_ratio: float,
        weight_decay: float,
        options: Mapping[str, Any],
        arguments: Iterable[str] = (),
    ) -> None:
        validation.one_of("key", key, KEYS)
        for name in ("params", "weight_decay", key):
            if name in options:
                raise ValueError(f"{name} cannot be an option: it is what the path sets for each strength")
        check_belong(options, (key,), "the path has")
        self.key, self.options, self._arguments = key, dict(options), tuple(arguments)
        self.l1_ratio, self._weight_decay = (
            checked_ratio(l1_ratio),
            validation.nonnegative("weight_decay", weight_decay),
        )
        grouping = {name[6:]: options[name] for name in ("group_dim", "group_size", "group_weight") if name in options}
        self.groups = Groups(**grouping) if key == "group_l1" else None
        self._l1_weights: Sequence[Tensor] | None = options.get("l1_weights")
        self.positive = bool(options.get("positive", False))
        # Further penalties and constraints would change the subdifferential.
        known = {"l1": {"l1_weights", "positive"}, "group_l1": {"group_dim", "group_size", "group_weight"}}
        self.has_subdifferential = key in known and options.keys() <= known[key]

    def strengths(self, strength: float) -> tuple[float, float]:
        """Returns the strengths of P and of the weight decay."""
        return strength * self.l1_ratio, strength * (1 - self.l1_ratio) + self._weight_decay

    def check(self, penalised: list[nn.Parameter], unpenalised: list[nn.Parameter]) -> None:
        """Raises where regkernels' optimizers do not know the key or an option, or not such a value."""
        self.check_options(("l1", *Penalties.__annotations__))
        SGD(self.param_groups(1.0, penalised, unpenalised), lr=1.0)

    def check_options(self, known: Iterable[str]) -> None:
        """Raises for an option that is none of the ``known`` keys of an optimizer's param groups."""
        check_known(self.options, known, "", self._arguments)

    def param_groups(
        self, strength: float, penalised: list[nn.Parameter], unpenalised: list[nn.Parameter]
    ) -> list[dict[str, Any]]:
        """Returns what an optimizer gets: the penalised parameters, and those that are not."""
        own, weight_decay = self.strengths(strength)
        groups: list[dict[str, Any]] = [
            {"params": penalised, self.key: own, "weight_decay": weight_decay, **self.options},
            {"params": unpenalised, self.key: 0.0, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def value(self, strength: float, params: list[nn.Parameter]) -> float:
        """The penalty of ``params``; NaN where regkernels has no function of it."""
        own, weight_decay = self.strengths(strength)
        weights = [param.detach().double() for param in params]
        decay = weight_decay / 2 * sum(weight.square().sum().item() for weight in weights)
        if self.key == "l1" and self.has_subdifferential:
            return sum((self.threshold(own, i) * weight.abs()).sum().item() for i, weight in enumerate(weights)) + decay
        if self.groups is not None and self.has_subdifferential:
            return own * sum(self.groups.weight(w) * self.groups.norms(w).sum().item() for w in weights) + decay
        function = getattr(penalties, f"{self.key}_penalty", None)
        shape = {name.removeprefix(f"{self.key}_") for name in self.options}
        if function is None or any(not name.startswith(f"{self.key}_") for name in self.options):
            return float("nan")
        arguments = {name: self.options[f"{self.key}_{name}"] for name in shape}
        return function(weights, own, **arguments).item() + decay

    def threshold(self, own: float, index: int) -> float | Tensor:
        """Tells how strong the L1 penalty of a parameter, or of its elements, is."""
        return own if self._l1_weights is None else own * self._l1_weights[index]

    def _distance(self, strength: float, index: int, weight: Tensor, gradient: Tensor) -> Tensor:
        own, weight_decay = self.strengths(strength)
        gradient = gradient + weight_decay * weight
        if self.groups is not None:
            return _group_distance(weight, gradient, own, self.groups)
        return l1_distance(weight, gradient, self.threshold(own, index), positive=self.positive)

    def violation(
        self, strength: float, penalised: list[nn.Parameter], gradients: list[Tensor], coordinates: Coordinates
    ) -> float:
        """The largest distance of 0 from the subdifferential, in the units of ``coordinates``.

        ``gradients``: of the penalised parameters, then of the others.
        """
        own = len(penalised)
        centred = parts(coordinates.centred(flat_of(gradients)), gradients)
        weights = [param.detach() for param in penalised]
        inverse = parts(coordinates.inverse, penalised)
        distances = [self._distance(strength, i, w, g) for i, (w, g) in enumerate(zip(weights, centred, strict=False))]
        if self.groups is not None:
            inverse = [self.groups.rows(part)[:, 0] for part in inverse]
        scaled = [distance * part for distance, part in zip(distances, inverse, strict=True)]
        return norm_inf([*scaled, flat_of(gradients[own:]) * coordinates.inverse_others] if gradients[own:] else scaled)

    def leaning(self, strength: float, index: int, weight: Tensor, gradient: Tensor) -> Tensor:
        """Returns ``weight`` with its zeros that should not be zero moved a hair downhill, for their sign."""
        if self.groups is not None:
            return weight
        enters = (weight == 0) & (self._distance(strength, index, weight, gradient) > 0)
        return torch.where(enters, -gradient.sign() * torch.finfo(weight.dtype).tiny, weight)

    def proximal(self, strength: float, index: int, weight: Tensor, step: Tensor) -> Tensor:
        """Returns where the penalty takes ``weight``, given a step size for each element, the same within a group."""
        own, weight_decay = self.strengths(strength)
        if self.groups is None:
            threshold = step * self.threshold(own, index)
            shrunk = weight - torch.minimum(torch.maximum(weight, -threshold), threshold)
            shrunk = shrunk.clamp(min=0) if self.positive else shrunk
        else:
            norms = self._norms_of_elements(weight)
            threshold = step * own * self.groups.weight(weight)
            shrunk = torch.where(norms <= threshold, 0.0, weight - _over(weight, norms) * threshold)
        return shrunk / (1 + step * weight_decay)

    def gradient(self, strength: float, index: int, weight: Tensor) -> Tensor:
        """Returns the gradient of this penalty, where it is differentiable; elsewhere that of its weight decay."""
        own, weight_decay = self.strengths(strength)
        if self.groups is None:
            return self.threshold(own, index) * weight.sign() + weight_decay * weight
        norms = self._norms_of_elements(weight)
        return own * self.groups.weight(weight) * _over(weight, norms) + weight_decay * weight

    def hessian_product(self, strength: float, weight: Tensor, direction: Tensor) -> Tensor:
        """The second derivative of this penalty times ``direction``, where there is one; elsewhere that of its weight decay."""
        own, weight_decay = self.strengths(strength)
        if self.groups is None:
            return weight_decay * direction
        norms = self._norms_of_elements(weight)
        unit = _over(weight, norms)
        along = self.groups.spread((self.groups.rows(unit) * self.groups.rows(direction)).sum(1), weight)
        return own * self.groups.weight(weight) * _over(direction - unit * along, norms) + weight_decay * direction

    def kinks(self, strength: float, index: int, weight: Tensor) -> Tensor:
        """Tells which elements, or groups of elements, have no derivative of the penalty at zero: a mask like ``weight``."""
        own, _ = self.strengths(strength)
        if self.positive:
            return torch.ones_like(weight, dtype=torch.bool)
        return (torch.zeros_like(weight) + self.threshold(own, index)) > 0

    def differentiable(self, strength: float, index: int, weight: Tensor) -> Tensor:
        """Tells where the penalty has derivatives: a mask like ``weight``."""
        sizes = weight if self.groups is None else self._norms_of_elements(weight)
        return (sizes != 0) | ~self.kinks(strength, index, weight)

    def zero_groups(self, params: list[nn.Parameter]) -> int | None:
        """Counts the groups that are zero as a whole; None where the penalty has no groups."""
        if self.groups is None:
            return None
        return sum(int((self.groups.rows(param.detach()) == 0).all(1).sum()) for param in params)

    def _norms_of_elements(self, weight: Tensor) -> Tensor:
        assert self.groups is not None
        return self.groups.spread(self.groups.norms(weight), weight)


def subdiff_distance(
    weight: Tensor,
    gradient: Tensor,
    strength: float,
    *,
    penalty: str = "l1",
    weight_decay: float = 0.0,
    dim: int | str = 0,
    size: int = 1,
    group_weight: Weighting = "sqrt_size",
) -> Tensor:
    """Tells how far ``-gradient`` is from the subdifferential of the penalty at ``weight``: 0 exactly at a solution.

    For "l1", with ``g = gradient + weight_decay * weight``:

        |g + strength * sign(w)|  where w != 0          max(|g| - strength, 0)  where w = 0

    For "group_l1" the same of each group's vectors, with ``w / ||w||_2`` for the sign and Euclidean norms.

    Args:
        weight: floating point, any shape. Not changed.
        gradient: of the loss at ``weight``, of the same shape.
        strength: >= 0, of the penalty, in units of the loss.
        penalty: "l1" or "group_l1".
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``.
        dim, size, group_weight: the groups of "group_l1", as in its param-group keys.

    Returns:
        The distances, like ``weight``; for "group_l1" one per group, shape (groups,).

    Raises:
        ValueError: for arguments outside of what is allowed, and shapes that differ.

    Source: skglm's ``subdiff_distance``; Bertrand et al., Beyond L1: Faster and Better Sparse Models with skglm (2022).
    """
    validation.one_of("penalty", penalty, ("l1", "group_l1"))
    validation.nonnegative("strength", strength)
    validation.nonnegative("weight_decay", weight_decay)
    if weight.shape != gradient.shape:
        raise ValueError(f"gradient must have the shape of weight, {tuple(weight.shape)}, got {tuple(gradient.shape)}")
    groups = Groups(dim, size, group_weight)
    gradient = gradient + weight_decay * weight
    if penalty == "group_l1":
        return _group_distance(weight, gradient, strength, groups)
    return l1_distance(weight, gradient, strength, positive=False)


def l1_distance(weight: Tensor, gradient: Tensor, strength: float | Tensor, *, positive: bool) -> Tensor:
    """Returns how far 0 is from the subdifferential of ``f + strength * |w|`` for each weight, given f's gradient."""
    # Where weights must not become negative, a gradient that is positive holds them at zero, however large it is.
    excess = (-gradient if positive else gradient.abs()) - strength
    return torch.where(weight == 0, excess.clamp(min=0), (gradient + strength * weight.sign()).abs())


def _group_distance(weight: Tensor, gradient: Tensor, strength: float, groups: Groups) -> Tensor:
    strength = strength * groups.weight(weight)
    norms = groups.norms(weight)
    excess = groups.norms(gradient + strength * _over(weight, groups.spread(norms, weight)))
    return torch.where(norms == 0, (groups.norms(gradient) - strength).clamp(min=0), excess)


def _over(tensor: Tensor, norms: Tensor) -> Tensor:
    """``tensor / norms``, and 0 where the norm is 0."""
    return torch.where(norms == 0, 0.0, tensor / torch.where(norms == 0, 1.0, norms))
