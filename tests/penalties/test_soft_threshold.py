"""The soft-threshold: by definition, by properties, in place, in every layout and type."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from regkernels.prox import soft_threshold, soft_threshold_

pytestmark = pytest.mark.interpreted

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Views of a fresh 6 x 8 tensor that may be written in place.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda b: b,
    "transposed": lambda b: b.t(),
    "rows": lambda b: b[1:4],
    "columns": lambda b: b[:, 1:7],
    "strided": lambda b: b[::2, 1::3],
    "transposed and strided": lambda b: b.t()[::2],
    "diagonal": lambda b: b.diagonal(),
    "offset by one": lambda b: b.view(-1)[1:],
    "channels_last": lambda b: b.view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "0-dim": lambda b: b[2, 3],
    "empty": lambda b: b[:0],
    "one column": lambda b: b[:, 3:4],
}


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(INTEGERS[x.element_size()])


def closed_form(x: Tensor, threshold: float) -> Tensor:
    """sign(x) * max(|x| - t, 0) in the compute type, rounded once, without -0.0."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    t = torch.tensor(threshold, dtype=wide.dtype)
    shrunk = torch.sgn(wide) * (wide.abs() - t).clamp(min=0)
    return (shrunk + 0.0).to(x.dtype)


# --- what it computes ---


@pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0, 10.0])
def test_minimises_its_objective(threshold: float) -> None:
    """Against a grid of step 1e-4: t |x| + (x - v)^2 / 2 is nowhere smaller."""
    v = torch.linspace(-3, 3, 61, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    values = threshold * grid.abs() + (grid - v[:, None]) ** 2 / 2
    best, where = values.min(dim=1)
    found = soft_threshold(v, threshold)
    assert (threshold * found.abs() + (found - v) ** 2 / 2 <= best + 1e-15).all()
    assert (found - grid[where]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [1e-3, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("size", [1, 15, 40_003])
def test_closed_form_in_every_type(dtype: torch.dtype, threshold: float, size: int) -> None:
    x = torch.randn(size).to(dtype)
    x[::5] = x[::5].sign() * threshold  # at the kink, as near as the type comes
    result = soft_threshold(x, threshold)
    assert result.dtype == dtype and result.shape == x.shape
    assert torch.equal(result, closed_form(x, threshold))
    in_place = x.clone()
    soft_threshold_(in_place, threshold)
    assert torch.equal(bits(in_place), bits(result))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threshold_zero_is_the_identity_bit_for_bit(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal / 4
    x = torch.tensor([0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, tiny, -tiny] * 3, dtype=dtype)
    for result in (soft_threshold(x, 0.0), soft_threshold_(x.clone(), 0)):
        assert torch.equal(result.isnan(), x.isnan())  # which of its many NaN a type keeps is up to the hardware
        assert torch.equal(bits(result)[~x.isnan()], bits(x)[~x.isnan()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -0.5, 0.25, -0.25, 2.0, -2.0], dtype=dtype)
    expected = torch.tensor([math.nan, math.inf, -math.inf, 0, 0, 0, 0, 0, 0, 1.5, -1.5], dtype=dtype)
    result = soft_threshold(x, 0.5)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert not torch.signbit(result[result == 0]).any()


# A half-precision result that is too small for its type keeps its sign when it is rounded to zero, as in IEEE 754.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_never_negative_zero(dtype: torch.dtype) -> None:
    x = -torch.logspace(-7, 4, 2000, base=2, dtype=torch.float64).to(dtype)
    for relative in (1.0, 1 - 2.0**-24, 1 - 2.0**-12, 1 + 2.0**-12):
        for value in x[::100].tolist():
            result = soft_threshold(x, abs(value) * relative)
            assert not torch.signbit(result[result == 0]).any()


# --- properties ---

moderate = strategies.floats(-1e3, 1e3, width=32)
thresholds = strategies.floats(0, 1e3, width=32)
arrays = strategies.lists(strategies.tuples(moderate, moderate), min_size=1, max_size=40)
quick = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@quick
@hypothesis.given(arrays, thresholds)
def test_firmly_nonexpansive_monotone_and_odd(pairs: list[tuple[float, float]], threshold: float) -> None:
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    px, py = soft_threshold(x, threshold), soft_threshold(y, threshold)
    # <p(x) - p(y), x - y> >= |p(x) - p(y)|^2, element by element
    assert ((px - py) * (x - y) >= (px - py) ** 2 * (1 - 1e-12) - 1e-10).all()
    assert ((px <= py) | (x > y)).all() and ((px >= py) | (x < y)).all()
    assert torch.equal(soft_threshold(-x, threshold), -px)
    assert (px.abs() <= x.abs()).all() and (px * x >= 0).all()
    assert torch.equal(px == 0, (x.abs() <= threshold) | (x == 0))


@quick
@hypothesis.given(arrays, thresholds, thresholds)
def test_two_thresholds_add_up(pairs: list[tuple[float, float]], one: float, other: float) -> None:
    x = torch.tensor(pairs, dtype=torch.float64)
    twice = soft_threshold(soft_threshold(x, one), other)
    torch.testing.assert_close(twice, soft_threshold(x, one + other), rtol=1e-12, atol=1e-12)


@quick
@hypothesis.given(strategies.lists(strategies.floats(width=32), min_size=1, max_size=40), thresholds)
def test_any_float32_gives_the_closed_form(values: list[float], threshold: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    result = soft_threshold(x, threshold)
    expected = closed_form(x, threshold) if threshold else x
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(soft_threshold(x.double(), threshold).isnan(), x.isnan())


# --- memory ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_layouts_out_of_place_and_in_place(view: str, dtype: torch.dtype) -> None:
    base = torch.randn(6, 8).to(dtype)
    before, x = base.clone(), VIEWS[view](base)
    expected = closed_form(x, 0.5)
    result = soft_threshold(x, 0.5)
    assert torch.equal(result, expected) and torch.equal(base, before)
    assert result.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()
    assert soft_threshold_(x, 0.5) is x
    assert torch.equal(x, expected)
    # The rest of the base is untouched, the view's part is written through.
    VIEWS[view](before).copy_(expected)
    if x._base is base or x is base:
        assert torch.equal(base, before)


def test_a_lazily_negated_tensor() -> None:
    base = torch.complex(torch.zeros(4), torch.tensor([1.0, -2.0, 0.25, -0.5]))
    x = base.conj().imag  # a view with the negative bit: its memory holds -x
    assert x.is_neg()
    expected = torch.tensor([-0.5, 1.5, 0.0, 0.0])
    assert torch.equal(soft_threshold(x, 0.5), expected)
    soft_threshold_(x, 0.5)
    assert torch.equal(x, expected) and torch.equal(base.imag, -expected)


def test_an_expanded_tensor_can_be_read_and_not_written() -> None:
    x = torch.tensor([[1.0], [-0.25]]).expand(2, 3)
    assert torch.equal(soft_threshold(x, 0.5), torch.tensor([[0.5] * 3, [0.0] * 3]))
    with pytest.raises(ValueError, match="expanded"):
        soft_threshold_(x, 0.5)


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "empty"])
def test_in_place_bumps_the_version(view: str) -> None:
    x = VIEWS[view](torch.randn(6, 8))
    version = x._version
    soft_threshold_(x, 0.1)
    assert x._version > version


def test_autograd_sees_that_a_saved_tensor_was_changed() -> None:
    w = torch.randn(5, requires_grad=True)
    saved = w * 1
    loss = (saved * saved).sum()
    with torch.no_grad():
        soft_threshold_(saved, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_refuses_to_be_recorded() -> None:
    leaf = torch.nn.Parameter(torch.ones(3))
    for x in (leaf, leaf * 2, leaf[1:]):
        with pytest.raises(RuntimeError, match="no_grad"):
            soft_threshold_(x, 0.5)
    assert torch.equal(leaf, torch.ones(3))
    with torch.no_grad():
        assert soft_threshold_(leaf, 0.5) is leaf
    assert torch.equal(leaf, torch.full((3,), 0.5)) and leaf.requires_grad and leaf.grad_fn is None


def test_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.tensor([1.0, -0.25])
        assert torch.equal(soft_threshold(x, 0.5), torch.tensor([0.5, 0.0]))
        assert torch.equal(soft_threshold_(x, 0.5), torch.tensor([0.5, 0.0]))


# --- gradients ---


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_gradcheck(threshold: float) -> None:
    x = torch.tensor([-2.0, -0.9, -0.2, 0.2, 0.8, 3.0], dtype=torch.float64).view(2, 3).t().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_threshold(x, threshold), (x,))
    assert torch.autograd.gradgradcheck(lambda x: soft_threshold(x, threshold) ** 2, (x,))


def test_gradient_at_the_kink_and_for_threshold_zero() -> None:
    x = torch.tensor([-0.5, 0.5, 0.0, -0.0, 0.75], requires_grad=True)
    soft_threshold(x, 0.5).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 0, 0, 0, 1]))
    x.grad = None
    soft_threshold(x, 0.0).sum().backward()
    assert torch.equal(x.grad, torch.ones(5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_gradient_passes_where_the_result_is_not_zero(dtype: torch.dtype, threshold: float) -> None:
    near = torch.tensor([threshold], dtype=dtype)
    x = torch.cat([near, -near, near * 1.02, near * 0.98]).requires_grad_()
    result = soft_threshold(x, threshold)
    result.sum().backward()
    assert torch.equal(x.grad, (result != 0).to(dtype)), f"|x| = {near.item()}"


# --- what is refused ---


@pytest.mark.parametrize("function", [soft_threshold, soft_threshold_])
def test_what_is_refused(function: Callable[[Tensor, float], Tensor]) -> None:
    x = torch.ones(3)
    for threshold, error in ((-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="threshold"):
            function(x, threshold)
    for wrong in (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64), x.to_sparse(), [1.0]):
        with pytest.raises(TypeError):
            function(wrong, 0.5)
    assert torch.equal(x, torch.ones(3))
