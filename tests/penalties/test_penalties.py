"""The penalties for the loss: values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from regkernels import elastic_net_penalty, l1_penalty, l2_penalty

pytestmark = pytest.mark.interpreted

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
L1, L2 = 0.3, 0.7


class Penalty(NamedTuple):
    ours: Callable[[Any], Tensor]
    eager: Callable[[Tensor], Tensor]  # of one tensor
    l1: float
    l2: float


PENALTIES = {
    "l1": Penalty(lambda p: l1_penalty(p, L1), lambda w: L1 * w.abs().sum(), L1, 0.0),
    "l2": Penalty(lambda p: l2_penalty(p, L2), lambda w: L2 * (w * w).sum(), 0.0, L2),
    "elastic net": Penalty(
        lambda p: elastic_net_penalty(p, L1, L2), lambda w: L1 * w.abs().sum() + L2 * (w * w).sum(), L1, L2
    ),
}
# Every way in which a tensor may lie in memory. The base is a fresh float64 tensor of 4 x 6 x 2 x 2.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda b: b,
    "transposed": lambda b: b.transpose(0, 1),
    "channels_last": lambda b: b.contiguous(memory_format=torch.channels_last),
    "sliced": lambda b: b[:, ::2],
    "gap at the end": lambda b: b[..., 0],
    "expanded": lambda b: b[:1].expand(3, 6, 2, 2),
    "flipped": lambda b: b.flip(0),
    "empty": lambda b: b[:0],
    "0-dim": lambda b: b[0, 0, 0, 0],
    "one element": lambda b: b[:1, :1, :1, :1],
    "offset by one": lambda b: b.reshape(-1)[1:],
}


@pytest.fixture(params=PENALTIES)
def penalty(request: pytest.FixtureRequest) -> Penalty:
    return PENALTIES[request.param]


def exact(penalty: Penalty, tensors: list[Tensor]) -> float:
    """The value with correctly rounded sums over all elements."""
    values = [v for t in tensors for v in t.detach().double().flatten().tolist()]
    return penalty.l1 * math.fsum(map(abs, values)) + penalty.l2 * math.fsum(v * v for v in values)


def away_from_zero(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64)
    return (x + x.sign()).to(dtype)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (15,), (17, 3), (70001,)])
def test_value_is_the_exact_sum(penalty: Penalty, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.randn(shape).to(dtype)
    value = penalty.ours(w)
    assert value.shape == () and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-7  # float32: the exact sum, rounded once
    assert math.isclose(value.item(), exact(penalty, [w]), rel_tol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(penalty: Penalty, layout: str) -> None:
    base = torch.randn(4, 6, 2, 2, dtype=torch.float64)
    gradients = []
    for function in (penalty.ours, penalty.eager):
        leaf = base.clone().requires_grad_()
        value = function(LAYOUTS[layout](leaf))
        assert math.isclose(value.item(), exact(penalty, [LAYOUTS[layout](base)]), rel_tol=1e-13)
        value.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)


def test_mixed_dtypes_shapes_and_tensors_without_gradient(penalty: Penalty) -> None:
    tensors = [away_from_zero(n, 3, dtype=dtype).requires_grad_() for n, dtype in enumerate(DTYPES, start=2)]
    frozen = [torch.randn(5), torch.randn(()), torch.empty(0, 3), torch.randn(3, 4).t()]
    listed = [frozen[0], tensors[0], tensors[1], frozen[1], tensors[2], frozen[2], frozen[3], tensors[3]]
    value = penalty.ours(listed)
    assert value.dtype == torch.float64 and math.isclose(value.item(), exact(penalty, listed), rel_tol=1e-13)
    value.backward()
    assert all(t.grad is None for t in frozen)
    for t in tensors:
        wide = t.detach().float() if t.dtype.itemsize < 4 else t.detach()
        assert t.grad.dtype == t.dtype and t.grad.shape == t.shape
        assert torch.equal(t.grad, (penalty.l1 * wide.sign() + 2 * penalty.l2 * wide).to(t.dtype))


def test_terms_with_strength_zero_are_off(penalty: Penalty) -> None:
    w = torch.randn(5, requires_grad=True)
    value = elastic_net_penalty(w, 0.0, 0.0)
    value.backward()
    assert value.item() == 0 and torch.equal(w.grad, torch.zeros(5))
    huge = torch.full((3,), 1e200, dtype=torch.float64)  # whose squares overflow
    assert math.isclose(elastic_net_penalty(huge, 1.0, 0.0).item(), 3e200)


def test_squares_do_not_overflow_in_float32() -> None:
    assert math.isclose(l2_penalty(torch.full((2,), 1e25), 1e-30).item(), 2e20, rel_tol=1e-6)


# --- gradients ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_is_eagers_bit_for_bit(penalty: Penalty, dtype: torch.dtype) -> None:
    start = torch.randn(1003, dtype=dtype)
    start[::7] = 0.0
    start[3] = -0.0
    ours, eager = start.clone().requires_grad_(), start.clone().requires_grad_()
    penalty.ours(ours).backward()
    penalty.eager(eager).backward()
    assert torch.equal(ours.grad, eager.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradient_is_rounded_once(penalty: Penalty, dtype: torch.dtype) -> None:
    w = torch.randn(1003).to(dtype).requires_grad_()
    penalty.ours(w).backward()
    wide = w.detach().float().requires_grad_()
    penalty.eager(wide).backward()
    assert torch.equal(w.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("upstream", [0.0, -2.0, 3.0, 65536.0])
def test_upstream_gradient(penalty: Penalty, upstream: float) -> None:
    ours = torch.randn(100, dtype=torch.float64, requires_grad=True)
    eager = ours.detach().clone().requires_grad_()
    (upstream * penalty.ours(ours)).backward()
    penalty.eager(eager).backward(torch.tensor(upstream, dtype=torch.float64))
    torch.testing.assert_close(ours.grad, eager.grad, rtol=1e-15, atol=0)


def test_gradcheck(penalty: Penalty) -> None:
    inputs = tuple(away_from_zero(n, 2).requires_grad_() for n in (1, 4))

    def function(*tensors: Tensor) -> Tensor:
        return penalty.ours([*tensors, torch.ones(3)]) ** 2  # squared: the upstream gradient depends on the inputs

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradcheck_of_tensor_strengths() -> None:
    w = away_from_zero(4).requires_grad_()
    l1, l2 = (torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in (L1, L2))
    for function, inputs in (
        (l1_penalty, (w, l1)),
        (l2_penalty, (w, l2)),
        (elastic_net_penalty, (w, l1, l2)),
        (lambda w, l2: elastic_net_penalty(w, L1, l2), (w, l2)),
        (lambda w, l1: elastic_net_penalty(w, l1, L2), (w, l1)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("strength", [torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_tensor_strengths_give_the_same_as_floats(strength: Tensor) -> None:
    w = torch.randn(40)
    value = l1_penalty(w, strength)
    assert value.dtype == torch.float32, "float64 where a parameter is, else float32"
    assert torch.equal(value, l1_penalty(w, 0.5))
    torch.testing.assert_close(elastic_net_penalty(w, strength, 0.25), elastic_net_penalty(w, 0.5, 0.25))


def test_no_grad_retain_graph_and_create_graph(penalty: Penalty) -> None:
    w = torch.randn(9, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert not penalty.ours(w).requires_grad
    assert not penalty.ours(w.detach()).requires_grad
    value = penalty.ours(w)
    assert value.requires_grad and value.grad_fn is not None
    value.backward(retain_graph=True)
    once = w.grad.clone()
    value.backward()
    assert torch.equal(w.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    (first,) = torch.autograd.grad(penalty.ours(w), w, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.arange(9)).sum(), w)
    torch.testing.assert_close(second, 2 * penalty.l2 * torch.arange(9, dtype=torch.float64))


def test_inference_mode(penalty: Penalty) -> None:
    parameter = nn.Parameter(torch.randn(7))
    with torch.inference_mode():
        made_here = torch.randn(5)
        value = penalty.ours([parameter, made_here])
        assert value.is_inference() and not value.requires_grad
        assert math.isclose(value.item(), exact(penalty, [parameter, made_here]), rel_tol=1e-6)


def test_changing_a_weight_between_forward_and_backward_is_refused(penalty: Penalty) -> None:
    w = torch.randn(7, requires_grad=True)
    value = penalty.ours(w)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_inputs_are_not_changed(penalty: Penalty) -> None:
    w = torch.randn(50, requires_grad=True)
    before, version = w.detach().clone(), w._version
    penalty.ours(w).backward()
    assert torch.equal(w, before) and w._version == version


def test_non_leaf_inputs(penalty: Penalty) -> None:
    ours = torch.randn(30, dtype=torch.float64, requires_grad=True)
    eager = ours.detach().clone().requires_grad_()
    penalty.ours([ours.exp(), ours[3:5]]).backward()
    (penalty.eager(eager.exp()) + penalty.eager(eager[3:5])).backward()
    torch.testing.assert_close(ours.grad, eager.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_visible(penalty: Penalty, value: float) -> None:
    w = torch.randn(20, requires_grad=True)
    with torch.no_grad():
        w[11] = value
    result = penalty.ours(w)
    result.backward()
    assert result.isnan() if math.isnan(value) else result == math.inf
    others = torch.arange(20) != 11
    assert w.grad[others].isfinite().all()
    # The limit at infinity; eager's gradient of |x| there is -1 or 1, too.
    expected = value if math.isnan(value) or penalty.l2 else math.copysign(penalty.l1, value)
    torch.testing.assert_close(w.grad[11].item(), expected, equal_nan=True, rtol=1e-6, atol=0)
