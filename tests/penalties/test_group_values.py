"""The group lasso as a value in the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import group_l1_penalty
from tests.support import cases, engine
from tests.support.penalties import STRENGTH

pytestmark = pytest.mark.interpreted


def rows(w: Tensor, dim: int | str, size: int = 1) -> Tensor:
    """One row per group, by torch's own indexing."""
    if dim == "tensor" or w.dim() == 0:
        return w.reshape(1, -1)
    assert isinstance(dim, int)
    groups = w.shape[dim] // size
    return w.movedim(dim, 0).reshape(groups, -1 if w.numel() else 0)


def eager(w: Tensor, dim: int | str = 0, size: int = 1, weight: str = "sqrt_size") -> Tensor:
    groups = rows(w, dim, size)
    factor = math.sqrt(groups.shape[1]) if weight == "sqrt_size" else 1.0
    return STRENGTH * factor * groups.norm(dim=1).sum()


# Runs of every length, few groups and many, tiles that are cut in each direction; those of LARGE not in the interpreter.
SHAPES = [(6,), (12, 6), (6, 5, 3, 2), (70, 40), (40, 70), (3, 2100), (2100, 3), (2, 3, 1100), (), (0, 6), (6, 0)]
SHAPES += [(3, 2104), (136, 8), (60, 2, 40)]  # of which 16 bytes are moved at a time, in more than one piece
LARGE = [(3, 40001), (40001, 3), (300, 300)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    if backend == "triton" and shape in LARGE:
        pytest.skip("takes minutes in Triton's interpreter; the sizes above have all its branches")
    values = torch.randn(shape, dtype=torch.float64).to(dtype)
    for dim in (*range(len(shape)), -1, "tensor"):
        ours = values.clone().requires_grad_()
        wide = values.double().clone().requires_grad_()
        value, expected = group_l1_penalty(ours, STRENGTH, dim), eager(wide, dim)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-7
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and value.shape == ()
        assert math.isclose(value.item(), expected.item(), rel_tol=tolerance)
        (0.7 * value).backward()
        (0.7 * expected).backward()
        tolerance = 1e-12 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours.grad.double(), wide.grad, rtol=tolerance, atol=0)


@pytest.mark.parametrize("weight", ["sqrt_size", "ones"])
@pytest.mark.parametrize(("dim", "size"), [(0, 1), (0, 4), (1, 3), (-1, 3), (1, 1), ("tensor", 1)])
def test_groups_of_several_indices(dim: Any, size: int, weight: Any) -> None:
    values = torch.randn(8, 6, 3, dtype=torch.float64)
    ours, wide = values.clone().requires_grad_(), values.clone().requires_grad_()
    value, expected = group_l1_penalty(ours, STRENGTH, dim, size, weight), eager(wide, dim, size, weight)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(ours.grad, wide.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(layout: str) -> None:
    for shape in ((4, 6), (2, 3, 2, 2)):
        for dim in (*range(len(shape)), "tensor"):
            values = torch.randn(shape, dtype=torch.float64)
            view, wide = cases.LAYOUTS[layout](values).requires_grad_(), values.clone().requires_grad_()
            value, expected = group_l1_penalty(view, STRENGTH, dim), eager(wide, dim)
            torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
            ours, theirs = torch.autograd.grad(value, view)[0], torch.autograd.grad(expected, wide)[0]
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)


def test_many_tensors_of_all_kinds() -> None:
    tensors = [torch.randn(4, n, dtype=torch.float64).to(dtype) for n, dtype in enumerate(cases.DTYPES, start=2)]
    tensors += [torch.randn(64, 4).t(), torch.zeros(4, 3), torch.randn(4), torch.empty(4, 0), torch.randn(4, 3)]
    params = [nn.Parameter(w) for w in tensors[:-1]]
    value = group_l1_penalty([*params, tensors[-1]], STRENGTH)
    assert value.dtype == torch.float64
    assert math.isclose(value.item(), math.fsum(eager(w.double()).item() for w in tensors), rel_tol=1e-12)
    value.backward()
    for param in params:
        wide = param.detach().double().requires_grad_()
        eager(wide).backward()
        tolerance = 2 * torch.finfo(param.dtype).eps
        torch.testing.assert_close(param.grad.double(), wide.grad, rtol=tolerance, atol=0)


def test_gradcheck() -> None:
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 2, 2)))
    strength = torch.tensor(STRENGTH, dtype=torch.float64, requires_grad=True)
    for dim, size in ((0, 1), (1, 1), (0, 2), ("tensor", 1)):

        def function(strength: Any, *tensors: Tensor, dim: Any = dim, size: int = size) -> Tensor:
            frozen = torch.ones(4, 3)
            size = 1 if dim == 1 else size
            return group_l1_penalty([frozen, *tensors], strength, dim, size) ** 2

        assert torch.autograd.gradcheck(function, (strength, *inputs))
        assert torch.autograd.gradgradcheck(function, (strength, *inputs))
        assert torch.autograd.gradgradcheck(lambda *w, f=function: f(STRENGTH, *w), inputs)


def test_a_group_that_is_zero_has_no_gradient_and_no_curvature() -> None:
    w = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-0.0, 0.0]], requires_grad=True)
    (first,) = torch.autograd.grad(group_l1_penalty(w, 1.0, weight="ones"), w, create_graph=True)
    torch.testing.assert_close(first, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]]))
    (second,) = torch.autograd.grad(first[:, 0].sum(), w)
    torch.testing.assert_close(second, torch.tensor([[0.0, 0.0], [0.64 / 5, -0.48 / 5], [0.0, 0.0]]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_within_its_group(value: float) -> None:
    w = torch.ones(4, 3)
    w[1, 2] = value
    w.requires_grad_()
    total = group_l1_penalty(w, STRENGTH)
    total.backward()
    assert total.isnan() if math.isnan(value) else total == math.inf
    assert w.grad[1, 2].isnan() and (w.grad[1, :2].isnan().all() if math.isnan(value) else (w.grad[1, :2] == 0).all())
    torch.testing.assert_close(w.grad[[0, 2, 3]], torch.full((3, 3), STRENGTH))
    w.grad = None
    off = group_l1_penalty(w, 0.0)
    off.backward()
    assert off.item() == 0 and w.grad[[0, 2, 3]].count_nonzero() == 0


def test_squares_neither_overflow_nor_vanish_in_float32() -> None:
    for scale in (1e25, 1e-30):
        w = torch.full((2, 2), scale, requires_grad=True)
        value = group_l1_penalty(w, 1.0, weight="ones")
        value.backward()
        assert value.item() == pytest.approx(2 * math.sqrt(2) * scale)
        torch.testing.assert_close(w.grad, torch.full((2, 2), math.sqrt(0.5)))


def test_values_and_gradients_are_the_same_for_every_instruction_set_and_number_of_threads(backend: str) -> None:
    if backend == "cpp":
        settings = engine.kernels(threads=(1, 2, 3))
        shapes = [*SHAPES[1:8], *LARGE]
    else:
        settings, shapes = [engine.Setting(backend)] * 2, SHAPES[1:4]
    for dtype in (torch.float64, torch.float32, torch.float16):
        tensors = [torch.randn(shape).to(dtype) for shape in shapes]
        for dim in (0, 1, "tensor"):
            found = []
            for setting in settings:
                params = [nn.Parameter(w) for w in tensors]
                with engine.active(setting):
                    value = group_l1_penalty(params, STRENGTH, dim)
                    value.backward()
                found.append([value.detach(), *(param.grad for param in params)])
            for outcome in found[1:]:
                for got, expected in zip(outcome, found[0], strict=True):
                    engine.assert_same_bits(got, expected, f"{dim}, {tuple(expected.shape)}")


def test_memory_that_appears_twice_counts_once() -> None:
    w = nn.Parameter(torch.randn(4, 3))
    expected = group_l1_penalty(w, STRENGTH).item()
    assert group_l1_penalty([w, w], STRENGTH).item() == group_l1_penalty([w.detach(), w], STRENGTH).item() == expected
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4).requires_grad_(False))
    assert group_l1_penalty(model, STRENGTH).item() == group_l1_penalty(list(model[0].parameters()), STRENGTH).item()
