"""The penalties beyond L1 and L2 as values in the loss: against their definitions, and the same bits from every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import l1_penalty, mcp_penalty, scad_penalty
from tests.support import cases, engine
from tests.support.penalties import PENALTIES, STRENGTH, Penalty, away_from

pytestmark = pytest.mark.interpreted

SIZES = [(0,), (1,), (15,), (17, 3), (8195,)]


@pytest.fixture(params=PENALTIES)
def penalty(request: pytest.FixtureRequest) -> Penalty:
    return PENALTIES[request.param]


def exactly(penalty: Penalty, tensors: list[Tensor], strength: float = STRENGTH) -> float:
    """By the definition, with a correctly rounded sum."""
    return math.fsum(x for w in tensors for x in penalty.terms(w.detach().double(), strength).flatten().tolist())


# --- values ---


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_values_are_the_exact_sums(penalty: Penalty, dtype: torch.dtype) -> None:
    tensors = [torch.randn(shape).to(dtype) for shape in SIZES]
    tensors[-1][::7] = 0.0
    tensors[-1][1::7] *= 1e-4  # where log(1 + x) takes more than log
    for listed in (*([w] for w in tensors), tensors):
        value = penalty.ours(listed, STRENGTH)
        assert value.shape == () and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-13 if dtype == torch.float64 else 1e-7  # float32: the exact sum, rounded once
        assert math.isclose(value.item(), exactly(penalty, listed), rel_tol=tolerance)


def test_magnitudes_of_every_order(penalty: Penalty) -> None:
    w = 10.0 ** torch.linspace(-300, 300, 601, dtype=torch.float64)
    for strength in (1e-9, 1.0, 1e9):
        for x in w.chunk(20):
            assert math.isclose(penalty.ours(x, strength).item(), exactly(penalty, [x], strength), rel_tol=1e-13)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_visible_unless_the_penalty_is_bounded(penalty: Penalty, value: float) -> None:
    w = torch.tensor([1.0, value, 0.5], requires_grad=True)
    total = penalty.ours(w, STRENGTH)
    total.backward()
    if penalty is PENALTIES["l0"]:
        assert total.item() == pytest.approx(3 * STRENGTH) and torch.equal(w.grad, torch.zeros(3))
        return
    bounded = penalty in (PENALTIES["mcp"], PENALTIES["scad"])
    expected = penalty.terms(torch.tensor(1e6), STRENGTH).item() + exactly(penalty, [w[::2]]) if bounded else math.inf
    assert total.isnan() if math.isnan(value) else total.item() == pytest.approx(expected)
    slope = penalty.slope(torch.tensor(value), STRENGTH).item()
    assert w.grad[1].isnan() if math.isnan(value) else w.grad[1].item() == pytest.approx(slope)
    assert w.grad[::2].isfinite().all()


def test_a_strength_of_zero_switches_the_penalty_off(penalty: Penalty) -> None:
    w = torch.tensor([1.0, -2.0, math.inf, 0.0], requires_grad=True)
    value = penalty.ours(w, 0.0)
    value.backward()
    assert value.item() == 0 and torch.equal(w.grad, torch.zeros(4))


# --- gradients ---


def test_gradients_are_those_of_the_definition(penalty: Penalty) -> None:
    ours = away_from(penalty.kinks, 300).requires_grad_()
    eager = ours.detach().clone().requires_grad_()
    (3.0 * penalty.ours(ours, STRENGTH)).backward()
    (3.0 * penalty.eager(eager, STRENGTH)).backward()
    torch.testing.assert_close(ours.grad, eager.grad, rtol=1e-13, atol=1e-15)


def test_gradients_at_zero_are_zero(penalty: Penalty) -> None:
    for dtype in cases.DTYPES:
        w = torch.tensor([0.0, -0.0], dtype=dtype, requires_grad=True)
        penalty.ours(w, STRENGTH).backward()
        assert torch.equal(w.grad, torch.zeros(2, dtype=dtype))


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")  # NumPy's remark on a signaling NaN
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_gradients_are_the_references_bit_for_bit(penalty: Penalty, dtype: torch.dtype, backend: str) -> None:
    tensors = [cases.special_values(dtype), torch.randn(4099).to(dtype), torch.randn(3, 5).to(dtype).t()]
    if backend == "cpp":
        tensors.append(cases.every_pattern(dtype))

    def gradients(setting: engine.Setting) -> list[Tensor]:
        params = [nn.Parameter(w.clone()) for w in tensors]
        with engine.active(setting):
            (0.7 * penalty.ours(params, STRENGTH)).backward()
        return [param.grad for param in params]

    expected = gradients(engine.REFERENCE)
    settings = engine.kernels(threads=(2,)) if backend == "cpp" else [engine.Setting(backend)]
    for setting in settings:
        for index, (got, wanted) in enumerate(zip(gradients(setting), expected, strict=True)):
            engine.assert_same_bits(got, wanted, f"{setting}, tensor {index}")


def test_half_precision_gradients_are_rounded_once(penalty: Penalty) -> None:
    for dtype in cases.HALF:
        w = torch.randn(500).to(dtype).requires_grad_()
        wide = w.detach().float().requires_grad_()
        penalty.ours([w, wide], STRENGTH).backward()
        assert torch.equal(w.grad, wide.grad.to(dtype))


def test_gradcheck(penalty: Penalty) -> None:
    inputs = tuple(away_from(penalty.kinks, n, 2).requires_grad_() for n in (1, 3))
    strength = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)

    def function(strength: Tensor | float, *tensors: Tensor) -> Tensor:
        return penalty.ours([*tensors, torch.ones(3)], strength) ** 2  # squared: the upstream gradient depends on all

    assert torch.autograd.gradcheck(lambda *w: function(STRENGTH, *w), inputs)
    assert torch.autograd.gradgradcheck(lambda *w: function(STRENGTH, *w), inputs)
    assert torch.autograd.gradcheck(function, (strength, *inputs))
    assert torch.autograd.gradgradcheck(function, (strength, *inputs))


def test_tensor_strengths_give_the_values_of_floats(penalty: Penalty) -> None:
    ours, other = (torch.randn(40).requires_grad_() for _ in range(2))
    other.data.copy_(ours.data)
    for strength in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64)):
        value, expected = penalty.ours(ours, strength), penalty.ours(other, 0.5)
        assert value.dtype == torch.float32 and value.shape == ()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, ours), torch.autograd.grad(expected, other))


@pytest.mark.parametrize("function", [mcp_penalty, scad_penalty])
def test_a_learned_strength_of_bounded_penalties_is_not_disturbed_by_infinity(function: object) -> None:
    w = torch.tensor([math.inf, 0.1, 5.0], requires_grad=True)
    strength = torch.tensor(0.5, requires_grad=True)
    function(w, strength).backward()  # type: ignore[operator]
    assert strength.grad.isfinite() and w.grad[0] == w.grad[2] == 0


# --- where they lie, and how often they count ---


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(penalty: Penalty, layout: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        for shape in ((4, 6), (2, 3, 2, 2), ()):
            values = torch.randn(shape).to(dtype)
            view, plain = cases.LAYOUTS[layout](values).requires_grad_(), values.clone().requires_grad_()
            totals = [penalty.ours(w, STRENGTH) for w in (view, plain)]
            torch.testing.assert_close(*totals)
            gradients = [torch.autograd.grad(total, w)[0] for total, w in zip(totals, (view, plain), strict=True)]
            engine.assert_same_bits(*gradients)


def test_memory_that_appears_twice_counts_once(penalty: Penalty) -> None:
    w = nn.Parameter(torch.randn(4, 3))
    for listed in ([w, w], [w.detach(), w], [w, nn.Parameter(w.detach().t())]):
        w.grad = None
        value = penalty.ours(listed, STRENGTH)
        assert math.isclose(value.item(), exactly(penalty, [w]), rel_tol=1e-6)
        value.backward()
        torch.testing.assert_close(w.grad, torch.autograd.grad(penalty.ours(w, STRENGTH), w)[0])


def test_a_module_means_its_trainable_parameters(penalty: Penalty) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4).requires_grad_(False))
    value = penalty.ours(model, STRENGTH)
    assert math.isclose(value.item(), exactly(penalty, list(model[0].parameters())), rel_tol=1e-6)


# --- sums do not depend on how they are computed ---


def test_values_are_the_same_for_every_instruction_set_and_number_of_threads(penalty: Penalty, backend: str) -> None:
    if backend != "cpp":
        settings = [engine.Setting(backend)] * 2
        tensors = [torch.randn(size).to(dtype) for size in (7, 8193) for dtype in cases.DTYPES]
    else:
        settings = engine.kernels(threads=(1, 2, 3))
        tensors = [
            torch.randn(size).to(dtype) for size in (*cases.SIZES, 3 * cases.CHUNK + 5) for dtype in cases.DTYPES
        ]
    found = []
    for setting in settings:
        with engine.active(setting):
            found.append(penalty.ours(tensors, STRENGTH))
    for value in found[1:]:
        engine.assert_same_bits(value, found[0])


# --- L1 with weights of its own for each element ---


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_weights(dtype: torch.dtype, backend: str) -> None:
    params = [torch.randn(shape).to(dtype) for shape in ((4099,), (3, 5), (0,), ())]
    params[1] = params[1].t()
    weights = [torch.rand(w.shape, dtype=torch.float64) for w in params]
    weights[0][::3] = 0.0
    weights[1] = weights[1].half()
    leaves = [nn.Parameter(w) for w in params]
    value = l1_penalty(leaves, STRENGTH, weights)
    wide = regkernels.reference.compute_dtype(dtype)
    products = [a.to(wide).double() * w.double().abs() for a, w in zip(weights, params, strict=True)]
    expected = STRENGTH * math.fsum(x for product in products for x in product.flatten().tolist())
    assert value.dtype == wide
    assert math.isclose(value.item(), expected, rel_tol=1e-13 if wide == torch.float64 else 1e-7)
    (0.7 * value).backward()
    scale = torch.tensor(torch.tensor(0.7, dtype=wide).item() * STRENGTH, dtype=wide)
    for leaf, a in zip(leaves, weights, strict=True):
        engine.assert_same_bits(leaf.grad, ((scale * a.to(wide)) * leaf.detach().to(wide).sign()).to(dtype), backend)


def test_weights_of_one_are_plain_l1_and_weights_of_zero_leave_out() -> None:
    w = torch.tensor([1.0, -3.0, math.inf, math.nan], requires_grad=True)
    assert l1_penalty(w[:2], 0.5, torch.ones(2)).item() == l1_penalty(w[:2], 0.5).item() == 2.0
    value = l1_penalty(w, 0.5, torch.tensor([1.0, 2.0, 0.0, 0.0]))
    assert value.item() == 3.5
    value.backward()
    assert w.grad[:3].tolist() == [0.5, -1.0, 0.0]
    assert l1_penalty(w, 0.0, torch.ones(4)).item() == 0.0


def test_gradcheck_of_weighted_l1() -> None:
    inputs = tuple(away_from((0.0,), *shape).requires_grad_() for shape in ((3,), (2, 2)))
    strength = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    weights = [torch.rand(3, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64).t()]

    def function(strength: Tensor, *tensors: Tensor) -> Tensor:
        return l1_penalty(tensors, strength, weights) ** 2

    assert torch.autograd.gradcheck(function, (strength, *inputs))
    assert torch.autograd.gradgradcheck(function, (strength, *inputs))
    assert torch.autograd.gradgradcheck(lambda *w: l1_penalty(w, STRENGTH, weights) ** 2, inputs)


def test_weights_of_memory_that_appears_twice_count_once() -> None:
    w = nn.Parameter(torch.ones(3))
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert l1_penalty([w, w], 1.0, [weights, weights]).item() == 6.0
    assert l1_penalty(nn.Linear(2, 1, bias=False), 1.0, torch.zeros(1, 2)).item() == 0.0


def test_weights_that_are_not_finite_and_positive_are_refused(backend: str) -> None:
    if backend == "triton":
        pytest.skip("values on a device are not looked at: the host would wait")
    w = torch.ones(40, requires_grad=True)
    for wrong in (-0.5, math.nan, math.inf):
        weights = torch.ones(40)
        weights[::20] = wrong
        with pytest.raises(
            ValueError, match="weights must be finite and not negative, but 2 of their elements are not"
        ):
            l1_penalty(w, 1.0, weights)
