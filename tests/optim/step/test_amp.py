"""torch.amp.GradScaler: its default path, and the one that hands the scale to the step; clipping on both."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from regkernels import optim
from tests.support.skipping import KINDS, RULES, Training, assert_same, copies

pytestmark = pytest.mark.usefixtures("one_thread")

NAN, INF = math.nan, math.inf
OVERFLOWING = 3
"""The step whose gradients contain an infinity."""


class Scaled:
    """A training whose gradients are those of a scaled loss."""

    def __init__(self, kind: str, scale: float = 2.0**10, clip: float | None = None, **options: Any) -> None:
        self.training, self.clip = Training(KINDS[kind], **options), clip
        self.scaler = GradScaler("cpu", init_scale=scale, growth_interval=2)
        self.unscale = clip is not None

    def step(self, number: int) -> float:
        """Returns the norm that torch clips by; 0 where it does not."""
        training, norm = self.training, 0.0
        self.scaler.scale(torch.zeros(()))  # as of a loss: makes the scale
        training.give(number, INF if number == OVERFLOWING else None, self.scaler.get_scale())
        if self.unscale:
            self.scaler.unscale_(training.optimizer)
        if self.clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(training.params, self.clip))
        self.scaler.step(training.optimizer)
        self.scaler.update()
        return norm


PRECISE = [name for name, kind in KINDS.items() if kind.dtype in (torch.float32, torch.float64)]
"""The scaler itself refuses float16 gradients, and knows no complex ones."""


@pytest.mark.parametrize("kind", [*PRECISE, "adamw, remainder", "flat halves"])
def test_the_scale_in_the_kernel_gives_the_bits_of_the_scale_before_it(kind: str) -> None:
    """With powers of two, through growth, a skipped step and the backoff after it. The gradients keep their scale."""
    divided, inside, plain = Scaled(kind), Scaled(kind, amp_scaling=True), Training(KINDS[kind])
    scales = []
    for number in range(7):
        divided.step(number)
        inside.step(number)
        if number != OVERFLOWING:
            plain.step(number)
        assert inside.scaler.state_dict() == divided.scaler.state_dict()
        assert_same(inside.training.everything(), copies(divided.training.everything()), f"step {number}")
        assert_same(inside.training.everything(), copies(plain.everything()), f"step {number}")
        used = scales[-1] if scales else 2.0**10
        scales.append(inside.scaler.get_scale())
        given = Training(KINDS[kind])
        given.give(number, INF if number == OVERFLOWING else None, used)
        for param, other in zip(inside.training.params, given.params, strict=True):
            assert torch.equal(param.grad, other.grad)
    assert scales == [2.0**power for power in (10, 11, 11, 10, 10, 11, 11)]


def test_gradients_of_float16_are_divided_where_they_are_wider() -> None:
    """The default path refuses them; the kernel divides the float32 that it computes with."""
    with pytest.raises(ValueError, match="unscale FP16"):
        Scaled("float16").step(0)
    inside, plain = (
        Scaled("float16", amp_scaling=True, max_grad_norm=25.0),
        Training(KINDS["float16"], max_grad_norm=25.0),
    )
    for number in range(6):
        inside.step(number)
        if number != OVERFLOWING:
            plain.step(number)
        assert_same(inside.training.everything(), copies(plain.everything()), f"step {number}")


@pytest.mark.parametrize("scale", [3.0, 1e-3, 65535.0])
def test_a_scale_that_is_no_power_of_two(scale: float) -> None:
    divided, inside = Scaled("float64", scale), Scaled("float64", scale, amp_scaling=True)
    for number in range(7):
        divided.step(number)
        inside.step(number)
        for a, b in zip(inside.training.params, divided.training.params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # torch divides by a float32 reciprocal


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_clipping_is_that_of_torch(rule: str, scaled: bool) -> None:
    """clip_grad_norm_ before the step, with a scaler after its unscale_; here the norm without the scale."""
    clip = 25.0
    theirs = Scaled(rule, clip=clip)
    ours = Scaled(rule, max_grad_norm=clip, stats=True, amp_scaling=scaled)
    norms = []
    for number in range(6):
        norms.append(theirs.step(number))
        ours.step(number)
        for a, b in zip(ours.training.params, theirs.training.params, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        if number != OVERFLOWING:
            assert ours.training.optimizer.stats.grad_norm == pytest.approx(norms[-1], rel=1e-6)
    assert min(norms) > clip and ours.scaler.state_dict() == theirs.scaler.state_dict()


def test_the_norm_of_a_skipped_step_is_that_of_its_gradients() -> None:
    ours = Scaled("adam", stats=True, amp_scaling=True)
    for number in range(OVERFLOWING):
        ours.step(number)
    before = ours.training.optimizer.stats
    ours.step(OVERFLOWING)
    stats = ours.training.optimizer.stats
    assert stats.grad_norm == INF
    assert torch.equal(stats.l1_norm, before.l1_norm) and torch.equal(stats.nonzeros, before.nonzeros)


@pytest.mark.parametrize("amp_scaling", [False, True])
@pytest.mark.parametrize("rule", ["dampening", "radam", "lion"])
def test_unscale_before_the_step(rule: str, amp_scaling: bool) -> None:
    """Whoever looks at the gradients first: the step must not divide them a second time."""
    ours, plain = Scaled(rule, amp_scaling=amp_scaling), Training(RULES[rule])
    ours.unscale = True
    for number in range(6):
        ours.step(number)
        if number != OVERFLOWING:
            plain.step(number)
        assert_same(ours.training.everything(), copies(plain.everything()), f"step {number}")


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_skipped_first_step_creates_nothing(amp_scaling: bool) -> None:
    for rule in RULES:
        ours, other = Scaled(rule, amp_scaling=amp_scaling), Training(RULES[rule])
        before, pinned = copies(ours.training.everything()), ours.training.pinned()
        for _ in range(2):
            ours.step(OVERFLOWING)
        assert bool(ours.training.states) == (rule == "adagrad"), "its states exist from the start"
        assert ours.training.pinned() == pinned
        assert_same(ours.training.everything(), before)
        for number in range(2):
            ours.step(number)
            other.step(number)
        assert_same(ours.training.everything(), copies(other.everything()), rule)


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_two_optimizers_with_one_scaler(amp_scaling: bool) -> None:
    """Only the one whose gradients overflow is skipped; the scale, which they share, is halved."""
    good, bad, alone = (Training(RULES[rule], amp_scaling=amp_scaling) for rule in ("adam", "momentum", "adam"))
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for number in range(4):
        scaler.scale(torch.zeros(()))
        for training in (good, bad):
            training.give(number, INF if training is bad and number == 1 else None, scaler.get_scale())
        before = copies(bad.everything())
        for training in (good, bad):
            scaler.step(training.optimizer)
        scaler.update()
        alone.step(number)
        assert_same(good.everything(), copies(alone.everything()))
        if number == 1:
            assert_same(bad.everything(), before)
            assert bad.states.keys() < before.keys()
        else:
            assert not torch.equal(before["1: weight"], bad.params[1])
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_scaler_that_is_switched_off(amp_scaling: bool) -> None:
    training, plain = Training(RULES["adamw"], amp_scaling=amp_scaling), Training(RULES["adamw"])
    scaler = GradScaler("cpu", enabled=False)
    for number in range(3):
        training.give(number)
        scaler.step(training.optimizer)
        scaler.update()
        plain.step(number)
        assert_same(training.everything(), copies(plain.everything()))


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_scaler_and_skip_nonfinite(amp_scaling: bool) -> None:
    """Who finds it does not matter. With the scale in the kernel, the step itself sees it, too."""
    options = {"skip_nonfinite": True, "max_grad_norm": 25.0}
    ours, plain = Scaled("radam", amp_scaling=amp_scaling, **options), Training(RULES["radam"], **options)
    for number in range(6):
        ours.step(number)
        if number != OVERFLOWING:
            plain.step(number)
        assert_same(ours.training.everything(), copies(plain.everything()), f"step {number}")


def test_mixed_precision_from_end_to_end() -> None:
    """Autocast, a loss, its scale, and weights that end where the default path takes them."""
    outcomes = []
    for amp_scaling in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
        optimizer = optim.RMSprop(model.parameters(), lr=1e-3, l1=1e-3, amp_scaling=amp_scaling, max_grad_norm=0.5)
        scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.randn(32, 6)
                loss = nn.functional.mse_loss(model(x).float(), x[:, :2])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        outcomes.append([param.detach() for param in model.parameters()])
        assert scaler.get_scale() == 2.0**10
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


# --- the attribute that the scaler looks for ---

COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda optimizer: optimizer,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("amp_scaling", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_attribute_is_set_where_it_was_asked_for_and_survives(rule: str, amp_scaling: bool, way: str) -> None:
    training = Training(RULES[rule], amp_scaling=amp_scaling)
    training.step(0)
    copied = COPIES[way](training.optimizer)
    assert getattr(copied, "_step_supports_amp_scaling", False) is amp_scaling
    assert hasattr(copied, "_step_supports_amp_scaling") is amp_scaling
    other = Training(RULES[rule], amp_scaling=not amp_scaling)
    other.optimizer.load_state_dict(copied.state_dict())
    assert hasattr(other.optimizer, "_step_supports_amp_scaling") is not amp_scaling, "an argument, no state"


def test_what_was_not_asked_for_is_not_looked_at() -> None:
    """As by torch's optimizers that are not fused."""
    training, plain = Training(RULES["adam"]), Training(RULES["adam"])
    training.optimizer.grad_scale, training.optimizer.found_inf = torch.tensor(4.0), torch.ones(1)
    for of in (training, plain):
        of.step(0)
    assert_same(training.everything(), copies(plain.everything()))


def test_a_copy_takes_part_in_scaled_training() -> None:
    ours, other = (Scaled("dampening", amp_scaling=True) for _ in range(2))
    for number in range(6):
        if number in (2, 4):
            ours.training, ours.scaler = pickle.loads(pickle.dumps((ours.training, ours.scaler)))
        for each in (ours, other):
            each.step(number)
        assert_same(ours.training.everything(), copies(other.training.everything()), f"step {number}")


def test_nothing_of_the_scaler_is_left_behind() -> None:
    ours = Scaled("adam", amp_scaling=True)
    ours.step(0)
    assert not {"grad_scale", "found_inf"} & vars(ours.training.optimizer).keys()
    plain: list[Tensor] = [param.detach().clone() for param in ours.training.params]
    ours.training.step(1)  # without the scaler, gradients are as they are
    other = Scaled("adam")
    other.step(0)
    other.training.step(1)
    assert_same(ours.training.everything(), copies(other.training.everything()))
    assert not torch.equal(plain[1], ours.training.params[1])


def test_a_scale_that_backed_off_to_zero_goes_on_skipping() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer, scaler = optim.SGD([param], lr=0.1, amp_scaling=True), torch.amp.GradScaler("cpu", init_scale=2.0**-140)
    for _ in range(15):
        optimizer.zero_grad()
        scaler.scale((param * float("nan")).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 0.0
    assert param.tolist() == [1.0] * 3
