"""Every rule on scalars of Python, written from the papers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from regkernels import optim

# --- the step, against scalar Python written from the sources ---

LR, L1, DECAY = 0.05, 0.3, 0.2
BETA1, BETA2, EPS = 0.8, 0.95, 1e-3


def soft(v: float, t: float) -> float:
    """Donoho and Johnstone (1994): the sign of v times what |v| exceeds t by."""
    return math.copysign(max(abs(v) - t, 0.0), v)


class Scalar:
    """One weight. ``direction`` and ``step_size`` follow the papers; the two regularisations are around them."""

    def __init__(
        self, weight: float, maximize: bool, l1_mode: str, weight_decay_mode: str, limit: float | None = None
    ) -> None:
        self.w, self.maximize, self.l1_mode, self.weight_decay_mode = weight, maximize, l1_mode, weight_decay_mode
        self.limit = math.inf if limit is None else limit
        self.t, self.gain = 0, 1.0
        self.past: list[float] = []

    @property
    def lr(self) -> float:
        return LR

    @property
    def moves_by_lr(self) -> bool:
        """Whether a constant gradient, however small, moves the weight by lr in the long run."""
        return False

    def rule(self, g: float) -> tuple[float, float]:
        """The direction and the step size."""
        return g, LR

    def average(self, beta: float, power: int = 1) -> float:
        """Of all gradients to date; a sum over the past, not a recursion."""
        return (1 - beta) * math.fsum(beta ** (self.t - 1 - i) * g**power for i, g in enumerate(self.past))

    def step(self, g: float) -> None:
        self.t += 1
        g = -g if self.maximize else g
        g += DECAY * self.w if self.weight_decay_mode == "coupled" else 0.0
        g += L1 * ((self.w > 0) - (self.w < 0)) if self.l1_mode == "subgradient" else 0.0
        if self.weight_decay_mode == "decoupled":
            self.w -= self.lr * DECAY * self.w
        self.past.append(g)
        direction, size = self.rule(g)
        moved = self.w - size * direction
        shrink = {"prox": size * self.gain * L1, "decoupled": self.lr * L1, "subgradient": 0.0}[self.l1_mode]
        self.w = soft(moved, shrink)
        if self.weight_decay_mode == "prox":  # argmin of size * gain * DECAY / 2 * x^2 + (x - w)^2 / 2
            self.w /= 1 + size * self.gain * DECAY
        most = self.limit * self.lr * self.gain
        if self.moves_by_lr and abs(moved - self.w) > most:
            self.w = moved - math.copysign(most, moved)


class Momentum(Scalar):
    """Polyak's heavy ball, with torch's dampening, and Nesterov's look-ahead as in Sutskever et al. (2013)."""

    mu, tau, nesterov = 0.9, 0.0, False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.velocity, self.gain = 0.0, (1 - self.tau) / (1 - self.mu)

    def rule(self, g: float) -> tuple[float, float]:
        self.velocity = g if self.t == 1 else self.mu * self.velocity + (1 - self.tau) * g
        return (g + self.mu * self.velocity if self.nesterov else self.velocity), LR


class Dampening(Momentum):
    tau = 0.5


class Nesterov(Momentum):
    nesterov = True


class Adam(Scalar):
    """Kingma and Ba (2015), algorithm 1."""

    moves_by_lr = True
    amsgrad = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.largest = 0.0

    def rule(self, g: float) -> tuple[float, float]:
        second = self.average(BETA2, 2)
        self.largest = max(self.largest, second)  # Reddi et al. (2018), with torch's correction after the maximum
        second = (self.largest if self.amsgrad else second) / (1 - BETA2**self.t)
        return self.average(BETA1) / (1 - BETA1**self.t), LR / (math.sqrt(second) + EPS)


class AMSGrad(Adam):
    amsgrad = True


class RMSprop(Scalar):
    """Hinton (2012), lecture 6e; centered: Graves (2013), equations 38 to 40; with torch's momentum of scaled gradients."""

    mu, centered = 0.0, False

    @property
    def moves_by_lr(self) -> bool:
        return not self.centered

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.velocity, self.gain = 0.0, 1 / (1 - self.mu)

    def rule(self, g: float) -> tuple[float, float]:
        second = self.average(BETA2, 2) - (self.average(BETA2) ** 2 if self.centered else 0.0)
        root = math.sqrt(second) + EPS
        self.velocity = self.mu * self.velocity + g / root
        return self.velocity * root, LR / root


class RMSpropMomentum(RMSprop):
    mu = 0.9


class RMSpropCentered(RMSprop):
    centered = True


class RMSpropBoth(RMSprop):
    mu, centered = 0.5, True


class Adagrad(Scalar):
    """Duchi, Hazan and Singer (2011), section 1.1 with the diagonal, and torch's decay of lr."""

    moves_by_lr = True

    @property
    def lr(self) -> float:
        return LR / (1 + (self.t - 1) * 0.3)

    def rule(self, g: float) -> tuple[float, float]:
        return g, self.lr / (math.sqrt(0.2 + math.fsum(g * g for g in self.past)) + EPS)


class RAdam(Scalar):
    """Liu et al. (2020), algorithm 2, with torch's 5 for the paper's 4, and eps before the correction of the bias."""

    @property
    def rho(self) -> float:
        powers, infinite = BETA2**self.t, 2 / (1 - BETA2) - 1
        return infinite - 2 * self.t * powers / (1 - powers)

    @property
    def moves_by_lr(self) -> bool:
        return self.rho > 5

    def rule(self, g: float) -> tuple[float, float]:
        powers, rho, infinite = BETA2**self.t, self.rho, 2 / (1 - BETA2) - 1
        first = self.average(BETA1) / (1 - BETA1**self.t)
        if rho <= 5:
            return first, LR
        r = math.sqrt((rho - 4) * (rho - 2) * infinite / ((infinite - 4) * (infinite - 2) * rho))
        return first, LR * r * math.sqrt(1 - powers) / (math.sqrt(self.average(BETA2, 2)) + EPS)


class Lion(Scalar):
    """Chen et al. (2023), algorithm 2: the sign of an average of the average before and the gradient."""

    def rule(self, g: float) -> tuple[float, float]:
        *before, _ = self.past
        average = (1 - BETA2) * math.fsum(BETA2 ** (self.t - 2 - i) * g for i, g in enumerate(before))
        update = BETA1 * average + (1 - BETA1) * g
        return float((update > 0) - (update < 0)), LR


ADAM_OPTIONS = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS}
RMSPROP_OPTIONS = {"lr": LR, "alpha": BETA2, "eps": EPS}
STEPS: dict[str, tuple[type[Scalar], Callable[..., Any], dict[str, Any]]] = {
    "sgd": (Scalar, optim.SGD, {"lr": LR}),
    "momentum": (Momentum, optim.SGD, {"lr": LR, "momentum": 0.9}),
    "dampening": (Dampening, optim.SGD, {"lr": LR, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": (Nesterov, optim.SGD, {"lr": LR, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam, optim.Adam, ADAM_OPTIONS),
    "amsgrad": (AMSGrad, optim.Adam, {**ADAM_OPTIONS, "amsgrad": True}),
    "rmsprop": (RMSprop, optim.RMSprop, RMSPROP_OPTIONS),
    "rmsprop_momentum": (RMSpropMomentum, optim.RMSprop, {**RMSPROP_OPTIONS, "momentum": 0.9}),
    "rmsprop_centered": (RMSpropCentered, optim.RMSprop, {**RMSPROP_OPTIONS, "centered": True}),
    "rmsprop_both": (RMSpropBoth, optim.RMSprop, {**RMSPROP_OPTIONS, "centered": True, "momentum": 0.5}),
    "adagrad": (Adagrad, optim.Adagrad, {"lr": LR, "lr_decay": 0.3, "initial_accumulator_value": 0.2, "eps": EPS}),
    "radam": (RAdam, optim.RAdam, ADAM_OPTIONS),
    "lion": (Lion, optim.Lion, {"lr": LR, "betas": (BETA1, BETA2)}),
}
MODES = itertools.product(["prox", "decoupled", "subgradient"], ["coupled", "decoupled", "prox"], [False, True])
LIMITS = itertools.cycle([2.0, None, 1.25])
CASES = [(name, *modes, next(LIMITS)) for modes in MODES for name in STEPS if name != "lion" or "prox" not in modes]
"""With 13 rules and 3 limits every rule meets every limit."""
