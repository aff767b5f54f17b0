"""The specification itself: its roots against exact arithmetic, its steps against the papers' formulas."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import regkernels
from regkernels import backends, optim, prox, reference
from regkernels.table import hyper
from regkernels.table.hyper import Hyper

# --- square_root ---


def float32_samples() -> Tensor:
    """All exponents, the neighbours of powers of two and of perfect squares, subnormals, and random bit patterns."""
    bits = [torch.randint(1, 0x7F800000, (1500,))]
    edges = (torch.arange(0, 255) << 23)[:, None] + torch.tensor([0, 1, 2, 0x7FFFFE, 0x7FFFFF])
    squares = (torch.arange(1, 4096, 13).float() ** 2).view(torch.int32).long()[:, None] + torch.arange(-1, 2)
    halfway = torch.tensor([0x3F7FFFFF, 0x3F800001, 0x407FFFFF, 0x7F7FFFFF, 1, 2, 3, 0x7FFFFF, 0x800000])
    patterns = torch.cat([*bits, edges.flatten(), squares.flatten(), halfway])
    return patterns[patterns > 0].to(torch.int32).view(torch.float32)


def test_float32_square_root_is_correctly_rounded() -> None:
    x = float32_samples()
    roots = reference.square_root(x)
    assert roots.dtype == torch.float32
    neighbours = torch.nextafter(roots, torch.zeros(())), torch.nextafter(roots, torch.tensor(math.inf))
    for value, root, below, above in zip(*(t.tolist() for t in (x, roots, *neighbours)), strict=True):
        # The root lies between the midpoints to the neighbours; squares of midpoints are never a float: no ties.
        value, root = Fraction(value), Fraction(root)
        assert ((root + Fraction(below)) / 2) ** 2 < value < ((root + Fraction(above)) / 2) ** 2


def test_float64_square_root_is_that_of_the_processor() -> None:
    patterns = torch.randint(1, 0x7FF0000000000000, (5000,))
    edges = (torch.arange(0, 2047) << 52)[:, None] + torch.tensor([0, 1, (1 << 52) - 1])
    x = torch.cat([patterns, edges.flatten()]).view(torch.float64)
    assert reference.square_root(x).tolist() == [math.sqrt(value) for value in x.tolist()]
    transposed = x[:5000].view(50, 100).t()
    assert torch.equal(reference.square_root(transposed), reference.square_root(transposed.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_square_root_of_special_values(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, math.inf, math.nan, 4.0], dtype=dtype)
    root = reference.square_root(x)
    torch.testing.assert_close(root, torch.tensor([0.0, -0.0, math.inf, math.nan, 2.0], dtype=dtype), equal_nan=True)
    assert torch.signbit(root[:2]).tolist() == [False, True]
    assert reference.square_root(torch.zeros(0, dtype=dtype)).shape == (0,)


# --- the step, against scalar Python written from the sources ---

LR, L1, DECAY = 0.05, 0.3, 0.2
BETA1, BETA2, EPS = 0.8, 0.95, 1e-3


def soft(v: float, t: float) -> float:
    """Donoho and Johnstone (1994): the sign of v times what |v| exceeds t by."""
    return math.copysign(max(abs(v) - t, 0.0), v)


class Scalar:
    """One weight. ``direction`` and ``step_size`` follow the papers; the two regularisations are around them."""

    def __init__(self, weight: float, maximize: bool, l1_mode: str, weight_decay_mode: str) -> None:
        self.w, self.maximize, self.l1_mode, self.weight_decay_mode = weight, maximize, l1_mode, weight_decay_mode
        self.t, self.gain = 0, 1.0
        self.past: list[float] = []

    @property
    def lr(self) -> float:
        return LR

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

    @property
    def lr(self) -> float:
        return LR / (1 + (self.t - 1) * 0.3)

    def rule(self, g: float) -> tuple[float, float]:
        return g, self.lr / (math.sqrt(0.2 + math.fsum(g * g for g in self.past)) + EPS)


class RAdam(Scalar):
    """Liu et al. (2020), algorithm 2, with torch's 5 for the paper's 4, and eps before the correction of the bias."""

    def rule(self, g: float) -> tuple[float, float]:
        powers = BETA2**self.t
        infinite = 2 / (1 - BETA2) - 1
        rho = infinite - 2 * self.t * powers / (1 - powers)
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
CASES = [(name, *modes) for modes in MODES for name in STEPS if name != "lion" or "prox" not in modes]


@pytest.mark.parametrize(("name", "l1_mode", "weight_decay_mode", "maximize"), CASES)
@pytest.mark.parametrize("backend", regkernels.info()["backends"])
def test_steps_follow_the_papers(backend: str, name: str, l1_mode: str, weight_decay_mode: str, maximize: bool) -> None:
    scalar, make, options = STEPS[name]
    start = torch.tensor([1.5, -1.0, 0.02, -0.01, 0.0, 3.0, -0.4], dtype=torch.float64)
    gradients = torch.randn(12, len(start), dtype=torch.float64)
    gradients[5:] *= 0.05  # small ones, so that the maximum of AMSGrad and the thresholds matter
    w = torch.nn.Parameter(start.clone())
    optimizer = make(
        [w],
        **options,
        l1=L1,
        weight_decay=DECAY,
        l1_mode=l1_mode,
        weight_decay_mode=weight_decay_mode,
        maximize=maximize,
    )
    expected = [scalar(value, maximize, l1_mode, weight_decay_mode) for value in start.tolist()]
    with backends.use(backend):
        for row in gradients:
            w.grad = row.clone()
            optimizer.step()
            for one, g in zip(expected, row.tolist(), strict=True):
                one.step(g)
            now = torch.tensor([one.w for one in expected], dtype=torch.float64)
            torch.testing.assert_close(w.detach(), now, rtol=1e-11, atol=1e-14)


def test_a_step_with_lr_zero_moves_states_only() -> None:
    w = torch.tensor([0.1, -0.0, math.nan, 3.0], dtype=torch.float64)
    before, states = w.clone(), [torch.zeros(4, dtype=torch.float64) for _ in range(2)]
    row = Hyper(decay=0.5, threshold=1.0, coupled_decay=1.0, beta1=0.9, one_minus_beta1=0.1, eps=1e-8)
    reference.update_("adam", w, torch.ones(4, dtype=torch.float64), states, row)
    assert torch.equal(w.view(torch.int64), before.view(torch.int64))
    assert states[0][0] == 0.1 * 1.1 and states[1][0] > 0


# --- hyper-parameters ---


@pytest.mark.parametrize("gain", [1.0, 10.0])
@pytest.mark.parametrize("per_element", [False, True])
def test_regularisation_of_every_mode(per_element: bool, gain: float) -> None:
    def fields(l1_mode: str, weight_decay_mode: str) -> dict[str, float]:
        group = {"lr": 0.1, "l1": 0.3, "weight_decay": 0.2, "l1_mode": l1_mode, "weight_decay_mode": weight_decay_mode}
        row = Hyper(**hyper.regularisation(group, gain=gain, step_per_element=per_element))
        return {name: value for name, value in row._asdict().items() if value != Hyper._field_defaults[name]}

    if per_element:
        l1_prox, decay_prox = {"threshold_per_step": 0.3 * gain}, {"shrink_per_step": 0.2 * gain}
    else:
        l1_prox, decay_prox = {"threshold": 0.1 * 0.3 * gain}, {"shrink_divisor": 1 + 0.1 * 0.2 * gain}
    l1_modes = {"prox": l1_prox, "decoupled": {"threshold": 0.1 * 0.3}, "subgradient": {"subgradient": 0.3}}
    decay_modes = {"coupled": {"coupled_decay": 0.2}, "decoupled": {"decay": 1 - 0.1 * 0.2}, "prox": decay_prox}
    always = {"lr": 0.1} if gain == 1 else {"lr": 0.1, "gain": gain}
    for (l1_mode, of_l1), (decay_mode, of_decay) in itertools.product(l1_modes.items(), decay_modes.items()):
        assert fields(l1_mode, decay_mode) == pytest.approx({**always, **of_l1, **of_decay}, rel=1e-15)


def test_rows_are_rounded_once_to_the_compute_type() -> None:
    row = Hyper(lr=0.1, decay=1 - 1e-9, eps=1e-50)
    single = row.rounded(torch.float32)
    assert row.rounded(torch.float64) == row
    assert single.lr == struct.unpack("f", struct.pack("f", 0.1))[0] and single.decay == 1.0 and single.eps == 0.0
    assert hyper.as_float(torch.tensor([0.5])) == hyper.as_float(0.5) == 0.5


# --- sums, penalties, and who calls the reference ---


def test_sums_and_penalties_of_the_reference() -> None:
    tensors = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[3.0]], dtype=torch.float64), torch.empty(0)]
    assert reference.sums(tensors) == (6.0, 14.0, 3)
    assert reference.l1_penalty(tensors, 0.5).item() == 3.0
    assert reference.l2_penalty(tensors, 0.5).item() == 7.0
    assert reference.elastic_net_penalty(tensors, 1.0, 2.0).item() == 34.0
    assert reference.elastic_net_penalty(tensors[:1], 1.0, 2.0).dtype == torch.float32
    assert torch.equal(reference.penalty_gradient(tensors[0], 0.5, 2.0), torch.tensor([2.5, -4.5, 0.0]))
    signs = reference.sign(torch.tensor([-0.0, 5.0, -math.inf, math.nan]))
    assert signs[:3].tolist() == [0, 1, -1] and signs[3].isnan()


def everything() -> Sequence[Tensor]:
    w = torch.nn.Parameter(torch.ones(5))
    optimizer = optim.SGD([w], lr=0.1, stats=True)
    regkernels.l1_penalty(w, 0.5).backward()
    optimizer.step()
    return w, prox.soft_threshold(w.detach(), 0.1)


@pytest.mark.parametrize("backend", regkernels.info()["backends"])
def test_the_backend_in_use_does_the_work(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    def spy(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            called.add(name)
            return original(*args)

        return wrapper

    for name in ("update_", "sums", "penalty_gradient", "soft_threshold"):
        monkeypatch.setattr(reference, name, spy(name, getattr(reference, name)))
    with backends.use(backend):
        assert backends.name() == backend
        w, shrunk = everything()
    torch.testing.assert_close([w.detach(), shrunk], [torch.full((5,), 0.95), torch.full((5,), 0.85)])
    expected = {"update_", "sums", "penalty_gradient", "soft_threshold"} if backend == "reference" else set()
    assert called == expected
