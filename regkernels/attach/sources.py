"""Says where optimizers of torch.optim leave the step s that they took for each element.

All of them move a weight by ``s * c * g`` where the gradient g is constant; c is the gain of what they average or accumulate.
A soft-threshold by ``l1 * s * c`` then stands still exactly where ``0`` is in ``g + l1 * sign(w)``: at the solution.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from regkernels.optim import penalty_keys
from regkernels.optim.radam import rectification
from regkernels.table.hyper import Number, number, select, square_root

Group = Mapping[str, Any]


class Step(NamedTuple):
    """Holds the numbers in the formula of a metric (`regkernels.reference.METRICS`), and the gain c."""

    lr: Number
    gain: Number = 1.0
    inverse_sqrt_bias2: Number = 1.0
    eps: Number = 0.0
    unit: Number | None = None  # of what is taken at most; None: lr * gain


class Source(NamedTuple):
    """Says how the metric of an optimizer is found.

    ``operands(group)``: its name, and those of the states it is computed from; ``counts``: the states that are numbers and
    that ``step(group, *counts)`` needs; ``keys``: the options that a param group must have.
    """

    operands: Callable[[Group], tuple[str, tuple[str, ...]]]
    step: Callable[..., Step]
    counts: tuple[str, ...]
    keys: tuple[str, ...]

    def gain_of(self, group: Group) -> tuple[float, float] | None:
        """Returns momentum and dampening, where these make a gain that has to be positive; else None."""
        if self.step not in (sgd, rmsprop):
            return None
        return group["momentum"], group.get("dampening", 0.0)


def uniform(group: Group) -> Step:
    """Takes the step size alone: there is no metric, or not one that is known."""
    return Step(number(group["lr"], group))


def sgd(group: Group) -> Step:
    """Takes lr, with the gain of torch's momentum, which is that of Nesterov's, too."""
    gain = (1.0 - group["dampening"]) / (1.0 - group["momentum"]) if group["momentum"] else 1.0
    return Step(number(group["lr"], group), gain)


def adam(group: Group, step: Number) -> Step:
    """Takes lr, the bias correction of the second moment, and eps."""
    beta2 = number(group["betas"][1], group)
    return Step(
        number(group["lr"], group),
        inverse_sqrt_bias2=1.0 / square_root(1.0 - beta2**step),
        eps=float(group["eps"]),
    )


def nadam(group: Group, step: Number, mu_product: Number) -> Step:
    """Moves by the gradient and by its average, with weights that change as long as ``momentum_decay`` works: their sum is
    the gain. Source: torch.optim.NAdam; Dozat, Incorporating Nesterov momentum into Adam (2016)."""
    beta1, decay = number(group["betas"][0], group), group["momentum_decay"]
    now = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
    following = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1.0) * decay))
    # The average of a constant gradient begins at 0: it is g * (1 - beta1**step).
    average = (1.0 - beta1**step) * following / (1.0 - mu_product * following)
    return adam(group, step)._replace(gain=(1.0 - now) / (1.0 - mu_product) + average, unit=number(group["lr"], group))


def radam(group: Group, step: Number) -> Step:
    """Takes what makes Adam's step RAdam's, as `regkernels.optim.RAdam` does."""
    beta2 = number(group["betas"][1], group)
    rectified, lr = rectification(beta2, step, float(group["eps"])), number(group["lr"], group)
    unit = select(rectified.known, lr, math.inf)
    return Step(lr * rectified.lr_factor, 1.0, rectified.root_factor, rectified.eps, unit)


def adamax(group: Group) -> Step:
    """Takes lr alone: the state ``exp_inf`` has eps in it."""
    return Step(number(group["lr"], group))


def rmsprop(group: Group) -> Step:
    """Takes lr, the gain of its momentum, and eps."""
    return Step(number(group["lr"], group), gain=1.0 / (1.0 - group["momentum"]), eps=float(group["eps"]))


def adagrad(group: Group, step: Number) -> Step:
    """Takes lr as it has decayed, and eps."""
    lr = number(group["lr"], group) / (1.0 + (step - 1.0) * group["lr_decay"])
    return Step(lr, eps=float(group["eps"]))


def _second_moment(group: Group) -> tuple[str, tuple[str, ...]]:
    return "root", ("max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq",)


def _square_avg(group: Group) -> tuple[str, tuple[str, ...]]:
    return ("centered", ("square_avg", "grad_avg")) if group["centered"] else ("root", ("square_avg",))


def _nothing(group: Group) -> tuple[str, tuple[str, ...]]:
    return "constant", ()


SOURCES = {
    "adam": Source(_second_moment, adam, ("step",), ("betas", "eps")),
    "nadam": Source(_second_moment, nadam, ("step", "mu_product"), ("betas", "eps", "momentum_decay")),
    "radam": Source(_second_moment, radam, ("step",), ("betas", "eps")),
    "adamax": Source(lambda group: ("reciprocal", ("exp_inf",)), adamax, (), ()),
    "rmsprop": Source(_square_avg, rmsprop, (), ("eps", "momentum", "centered")),
    "adagrad": Source(lambda group: ("root", ("sum",)), adagrad, ("step",), ("eps", "lr_decay")),
    "sgd": Source(_nothing, sgd, (), ("momentum", "dampening")),
}
"""Sources by the name that ``metric=`` takes."""

UNIFORM = Source(_nothing, uniform, (), ())

_CLASSES: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adam",
    torch.optim.NAdam: "nadam",
    torch.optim.RAdam: "radam",
    torch.optim.Adamax: "adamax",
    torch.optim.RMSprop: "rmsprop",
    torch.optim.Adagrad: "adagrad",
    torch.optim.SGD: "sgd",
}


def of_class(optimizer_class: type[torch.optim.Optimizer]) -> Source | None:
    """Returns the source of a class of torch.optim, or of a class derived from one that makes the same step; else None."""
    for base in optimizer_class.__mro__:
        name = _CLASSES.get(base)
        if name is not None:
            classes: tuple[Any, ...] = (optimizer_class, base)
            made_by, known = (inspect.unwrap(cls.step) for cls in classes)
            return SOURCES[name] if made_by is known else None
    return None


def check_group(source: Source, group: Group, where: str) -> None:
    """Raises where a param group lacks what the metric is computed from, or has a momentum without a gain."""
    missing = [key for key in ("lr", *source.keys) if key not in group]
    if missing:
        raise ValueError(
            f"the metric of this optimizer is computed from {', '.join(missing)}, which is not in its options{where}; choose "
            "another metric=, or pass a function (param, state, group) -> step per element"
        )
    gain = source.gain_of(group)
    if gain is not None:
        strengths = {"l1": group["l1"], "weight_decay": group["prox_weight_decay"]}
        modes = {"l1_mode": "prox", "weight_decay_mode": "prox"}
        penalty_keys.check_gain({**strengths, **modes}, *gain, where)
