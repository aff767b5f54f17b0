"""The proximal operators: against minimisation by brute force, by their properties, and at the ends of the number range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from regkernels import prox
from tests.support import cases, engine, penalised
from tests.support.penalised import PENALTIES, operator

NAN, INF = math.nan, math.inf

EACH = [(name, *setting) for name, of in PENALTIES.items() for setting in of.settings]
each = pytest.mark.parametrize(("name", "strength", "shape", "step"), EACH)


def points(name: str, strength: float, shape: float, step: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of both signs, dense around the thresholds: exactly there, the next numbers on both sides, and a little further."""
    near = torch.tensor(penalised.thresholds(name, strength, shape, step), dtype=torch.float64).to(dtype)
    above, below = near.nextafter(2 * near + 1), near.nextafter(torch.zeros_like(near))
    around = [near * (1 + k * 1e-3) for k in range(-20, 21)]
    far = near.max() * torch.linspace(0, 5, 101, dtype=torch.float64).to(dtype)
    limits = torch.finfo(dtype)
    tiny = torch.tensor([0.0, limits.tiny * limits.eps, limits.tiny, 1e-30], dtype=dtype)
    positive = torch.cat([near, above, below, *around, far, tiny, far[-1:] * 100])
    return torch.cat([positive, -positive])


def assert_minimises(x: Tensor, values: penalised.Objective, v: Tensor, excess: float) -> Tensor:
    """No grid point is better; where all points that are not near the best one are clearly worse, x is near it. Returns where."""
    scale = values(torch.zeros(1, len(v), dtype=torch.float64))[0].clamp(min=1e-300)
    low, high = torch.minimum(v, torch.zeros_like(v)), torch.maximum(v, torch.zeros_like(v))
    best = penalised.minimise(values, low, high)
    difference = (values(x[None]) - values(best[None]))[0] / scale
    assert difference.max() <= excess, f"worse by {difference.max():.2e} at v = {v[difference.argmax()].item()!r}"
    grid = low + (high - low) * torch.linspace(0, 1, 801, dtype=torch.float64)[:, None]
    elsewhere = (grid - best).abs() > 1e-2 * v.abs()
    margin = torch.where(elsewhere, values(grid) - values(best[None]), torch.full_like(grid, INF)).min(0).values
    clear = margin > 1e-5 * scale
    assert ((x - best).abs() <= 1e-2 * v.abs())[clear].all()
    return clear


@each
def test_minimises_its_objective(name: str, strength: float, shape: float, step: float) -> None:
    v = points(name, strength, shape, step)
    x = operator(name, v, strength, shape, step)
    clear = assert_minimises(x, penalised.objective(name, v, strength, shape, step), v, 1e-14)
    assert clear.sum() > len(v) // 2
    # Stationary to rounding where it is not 0: that is sharper than the objective, which is flat at its minimum.
    slope = x - v + step * PENALTIES[name].slope(x, strength, shape)
    assert (slope.abs() <= 1e-15 * v.abs() + 1e-300)[x != 0].all()


@each
def test_is_odd_monotone_and_shrinks(name: str, strength: float, shape: float, step: float) -> None:
    for dtype in (torch.float64, torch.float32):
        v = points(name, strength, shape, step, dtype).sort().values
        x = operator(name, v, strength, shape, step)
        assert not PENALTIES[name].even or torch.equal(operator(name, -v, strength, shape, step), -x)
        assert (x.abs() <= v.abs()).all() and (x * v >= 0).all()
        eps = torch.finfo(dtype).eps
        before = (
            torch.searchsorted(v, v - 40 * eps * v.abs()) - 1
        )  # where the logarithm decides, a jump's place is rounded
        assert (x[before[before >= 0]] <= x[before >= 0] + 2 * eps * v[before >= 0].abs()).all()
        zero = (x == 0) & (v.abs() > torch.finfo(dtype).tiny)
        assert not x[zero].signbit().any()
        assert zero.any() == (name != "huber")


def test_nearly_hard_thresholds_stay_within_their_argument() -> None:
    """With a step just below where the problem ceases to be convex, a rounding error is divided by next to nothing."""
    for dtype, (name, shape) in itertools.product(
        (torch.float64, torch.float32), (("mcp", 1.9), ("mcp", 3.0), ("scad", 2.9), ("scad", 3.7))
    ):
        edge = torch.tensor(shape - (name == "scad"), dtype=dtype)
        step = edge
        for _ in range(4):
            step = step.nextafter(torch.zeros_like(step))
            for strength in (0.3, 0.7, 1.1):
                near = torch.tensor(strength, dtype=dtype) * torch.tensor([edge, shape, 1 + step], dtype=dtype)[:, None]
                v = (near * (1 + torch.finfo(dtype).eps * torch.arange(-8, 9, dtype=dtype))).flatten()
                x = operator(name, v, strength, shape, step.item())
                assert (x.abs() <= v.abs()).all(), (name, shape, strength, step)
                exact = penalised.objective(
                    name, v.double(), torch.tensor(strength, dtype=dtype).item(), shape, step.item()
                )
                assert_minimises(x.double(), exact, v.double(), 20 * torch.finfo(dtype).eps)


# --- float32 ---


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 1e3], ids="around {:g}".format)
@pytest.mark.parametrize("name", PENALTIES)
def test_float32_is_float64_to_a_few_ulp_of_the_argument(name: str, size: float) -> None:
    """Also where the penalty takes next to nothing: small weights must not lose their digits."""
    v = (size * torch.linspace(0.1, 10, 4001, dtype=torch.float64)).float()
    for u in (size * 1e-5, size * 1e-2, size * 0.3):
        step = 0.25
        strength = torch.tensor(u / step).item() if name != "huber" else u / size
        for shape in {"mcp": (3.0, 0.5), "scad": (3.7, 1.5)}.get(name, (1.0, 0.125)):
            got = operator(name, v, strength, shape, step).double()
            expected = operator(name, v.double(), torch.tensor(strength).double().item(), shape, step)
            same = (got == 0) == (expected == 0)
            assert same.sum() > len(v) - 4  # a jump may be an ulp away
            assert ((got - expected).abs() <= 2.5e-7 * v)[same].all(), (u, shape)


@pytest.mark.parametrize(("strength", "step"), [(0.5, 1.0), (0.01, 0.3), (7.0, 2.0), (1e-8, 1e-3)])
def test_l_half_is_the_formula_with_cosines(strength: float, step: float) -> None:
    """Xu et al. (2012), theorem 1, for ``u = step * strength``."""
    u = step * strength
    threshold = 1.5 * u ** (2 / 3)
    v = threshold * torch.linspace(1.0001, 40, 1001, dtype=torch.float64)
    angle = torch.acos(-(3**1.5 / 4) * u * v**-1.5)
    expected = 2 / 3 * v * (1 + torch.cos(2 / 3 * angle))
    torch.testing.assert_close(prox.l_half(v, strength, step=step), expected, rtol=1e-14, atol=0)
    assert not prox.l_half(v[:1] * 0.9998, strength, step=step).any()


# --- the ends of the number range ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PENALTIES)
def test_special_values(name: str, dtype: torch.dtype) -> None:
    shape = PENALTIES[name].shape
    for step in (1e-6, 0.5, 5.0):
        x = operator(name, torch.tensor([NAN, INF, -INF, 0.0, -0.0], dtype=dtype), 0.5, shape, step)
        assert x[0].isnan() and x[1] == INF and x[2] == -INF
        assert not x[3:].any() and not x[3].signbit() and (name == "huber" or not x[4].signbit())
        huge = torch.tensor(
            [1e30, -1e30, 3e38] if dtype in (torch.float32, torch.bfloat16) else [6e4, -6e4], dtype=dtype
        )
        for strength in (0.5, 1e-30):
            torch.testing.assert_close(operator(name, huge, strength, shape, step), huge, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "huber"])
def test_a_huge_strength_makes_zeros(name: str) -> None:
    v = torch.tensor([0.0, 1e-30, 1.0, -1e3, 1e9])
    assert not operator(name, v, 1e30, PENALTIES[name].shape, 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_strength_or_a_step_of_zero_leaves_every_bit(name: str, dtype: torch.dtype) -> None:
    v = cases.every_pattern(dtype)
    v = v[~v.isnan()]
    for strength, step in ((0.0, 1.0), (1.0, 0.0)):
        x = operator(name, v, strength, PENALTIES[name].shape, step)
        assert torch.equal(engine.bits(x), engine.bits(v))
        assert x.data_ptr() != v.data_ptr()


# --- convex ones ---

moderate = strategies.floats(-1e3, 1e3, width=32)
positives = strategies.floats(2.0**-10, 2.0**10, width=32)
pairs = strategies.lists(strategies.tuples(moderate, moderate), min_size=1, max_size=40)
quick = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)

# With the proximal operator of the conjugate, ``prox_{f* / t}(y)`` for y = v / t, worked out by hand: Moreau's identity is
# prox_{t f}(v) + t * prox_{f* / t}(v / t) = v.
CONVEX: dict[str, tuple[Callable[[Tensor, float, float], Tensor], Callable[[Tensor, float, float], Tensor]]] = {
    "l1": (lambda v, lam, t: prox.elastic_net(v, lam, 0.0, step=t), lambda y, lam, t: y.clamp(-lam, lam)),
    "elastic net": (
        lambda v, lam, t: prox.elastic_net(v, lam, 0.5, step=t),
        lambda y, lam, t: torch.where(y.abs() <= lam, y, (y + 2 / t * lam * y.sign()) / (1 + 2 / t)),
    ),
    "weighted l1": (
        lambda v, lam, t: prox.weighted_l1(v, lam, weights_like(v), step=t),
        lambda y, lam, t: torch.minimum(torch.maximum(y, -lam * weights_like(y)), lam * weights_like(y)),
    ),
    "positive": (lambda v, lam, t: prox.positive(v, lam, step=t), lambda y, lam, t: y.clamp(max=lam)),
    "huber": (
        lambda v, lam, t: prox.huber(v, lam, delta=2.0, step=t),
        lambda y, lam, t: (y / (1 + 1 / (t * lam))).clamp(-2 * lam, 2 * lam),
    ),
    "box": (
        lambda v, lam, t: prox.box(v, -lam, 3 * lam),
        # The conjugate of an indicator is the support function: of |y| scaled, and shifted.
        lambda y, lam, t: torch.where(y * t > 3 * lam, y - 3 * lam / t, torch.where(y * t < -lam, y + lam / t, 0 * y)),
    ),
}


def weights_like(v: Tensor) -> Tensor:
    return torch.arange(len(v), dtype=v.dtype) % 3 / 2


@pytest.mark.parametrize("name", CONVEX)
@quick
@hypothesis.given(pairs=pairs, strength=positives, step=positives)
def test_moreaus_identity_and_firm_nonexpansiveness(
    name: str, pairs: list[tuple[float, float]], strength: float, step: float
) -> None:
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    of, of_conjugate = CONVEX[name]
    px, py = of(x, strength, step), of(y, strength, step)
    torch.testing.assert_close(px + step * of_conjugate(x / step, strength, step), x, rtol=1e-12, atol=1e-12)
    # <p(x) - p(y), x - y> >= |p(x) - p(y)|^2, element by element; it makes p nonexpansive.
    assert ((px - py) * (x - y) >= (px - py) ** 2 * (1 - 1e-12) - 1e-9).all()


# --- autograd ---


@pytest.mark.parametrize("name", PENALTIES)
def test_gradcheck(name: str) -> None:
    for step in (0.5, 4.0):
        for strength in (0.2, 1.3):
            shape = PENALTIES[name].shape
            edges = torch.tensor(penalised.thresholds(name, strength, shape, step), dtype=torch.float64)
            v = torch.linspace(-6.05, 6.1, 60, dtype=torch.float64)
            v = v[((v.abs()[:, None] - edges).abs() > 1e-3).all(1)].requires_grad_()
            assert torch.autograd.gradcheck(lambda v, *a: operator(name, v, *a), (v, strength, shape, step))
