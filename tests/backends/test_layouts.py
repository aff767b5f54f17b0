"""Wherever the elements lie in memory, the step is the one on contiguous copies of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import prox
from regkernels.memory import has_layout, is_dense
from tests.support import cases, covering, engine

pytestmark = pytest.mark.interpreted

CASES = [cases.Case("sgd", "prox", "coupled"), *cases.FEW[1:3]]


def step(setting: engine.Setting, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    for param, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        param.grad = gradient
    with engine.active(setting):
        optimizer.step()


def assert_same_as_contiguous(
    case: cases.Case, shapes: list[tuple[int, ...]], of_param: Callable[[Tensor], Tensor], of_gradient: list[str]
) -> None:
    """One step per layout of ``of_gradient``, in place and on contiguous clones, by every implementation."""
    kinds = [(dtype, shape) for dtype in cases.DTYPES for shape in shapes]
    values = [torch.randn(shape).to(dtype) for dtype, shape in kinds]
    steps = [[torch.randn(shape).to(dtype) for dtype, shape in kinds] for _ in of_gradient]
    optimizers = []
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        placed = engine.make(case.rule, [nn.Parameter(of_param(value)) for value in values], **case.options)
        plain = engine.make(case.rule, [nn.Parameter(value.clone()) for value in values], **case.options)
        params = placed.param_groups[0]["params"]
        around = [cases.surroundings(param) for param in params]
        addresses = [(param.data_ptr(), param.stride()) for param in params]
        for layout, gradients in zip(of_gradient, steps, strict=True):
            strided = [cases.LAYOUTS[layout](gradient) for gradient in gradients]
            before = [cases.surroundings(gradient, everything=True) for gradient in strided]
            step(setting, plain, gradients)
            step(setting, placed, strided)
            note = f"{setting}, gradients {layout}"
            engine.assert_same(engine.snapshot(placed), engine.snapshot(plain), note)
            for after, expected in zip([cases.surroundings(g, everything=True) for g in strided], before, strict=True):
                engine.assert_same_bits(after, expected, f"{note}: a gradient was written")
        for param, expected in zip(params, around, strict=True):
            engine.assert_same_bits(cases.surroundings(param), expected, f"{setting}: written beside a parameter")
        assert addresses == [(param.data_ptr(), param.stride()) for param in params]
        optimizers.append(placed)
    for setting, other in zip(engine.kernels(threads=(1,)), optimizers[1:], strict=True):
        engine.assert_same(engine.snapshot(other), engine.snapshot(optimizers[0]), setting)


TWO_LAYOUTS = list(itertools.product(cases.LAYOUTS, cases.LAYOUTS))


@pytest.mark.parametrize(
    ("of_param", "of_gradient", "case"),
    [(*two, case) for two, case in zip(TWO_LAYOUTS, covering.dealt(TWO_LAYOUTS, CASES), strict=True)],
    ids=str,
)
def test_layouts_of_parameters_and_gradients(of_param: str, of_gradient: str, case: cases.Case) -> None:
    assert_same_as_contiguous(case, [*cases.SHAPES], cases.LAYOUTS[of_param], [of_gradient] * 2)


def test_every_case_meets_every_layout_of_either() -> None:
    chosen = covering.dealt(TWO_LAYOUTS, CASES)
    for factor in range(2):
        met = {(two[factor], case) for two, case in zip(TWO_LAYOUTS, chosen, strict=True)}
        assert met == set(itertools.product(cases.LAYOUTS, CASES))


@pytest.mark.parametrize("of_param", cases.LAYOUTS)
def test_gradients_whose_layout_changes_from_step_to_step(of_param: str) -> None:
    """What was updated in place one step may go through a copy in the next, and the other way round."""
    order = ["contiguous", *cases.LAYOUTS, *reversed(cases.LAYOUTS)]
    case = CASES[1 + [*cases.LAYOUTS].index(of_param) % 2]
    assert_same_as_contiguous(case, [(5, 7), (2, 3, 4, 5)], cases.LAYOUTS[of_param], order)


@pytest.mark.parametrize("of_param", ["contiguous", "transposed", "every_other"])
def test_expanded_gradients(of_param: str) -> None:
    """All elements of a sum's gradient are one place in memory."""
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        outcomes = []
        for dense in (False, True):
            value = torch.arange(35.0).reshape(5, 7)
            param = nn.Parameter(value.clone() if dense else cases.LAYOUTS[of_param](value))
            optimizer = engine.make("adam", [param], **cases.FEW[1].options)
            for _ in range(2):
                param.grad = None
                param.sum().backward()
                assert param.grad is not None
                gradient = torch.tensor(0.3).expand(5, 7)
                step(setting, optimizer, [gradient.clone() if dense else gradient])
            outcomes.append(engine.snapshot(optimizer))
        engine.assert_same(*outcomes, setting)


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_a_gradient_that_is_a_negative_view_has_its_sign(rule: str) -> None:
    """The imaginary part of a conjugate: torch negates when it reads, the memory holds the opposite."""
    z = torch.tensor([0.5 + 2.0j])
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        for first in (z.conj().imag, torch.ones(1)):
            param = nn.Parameter(torch.ones(1))
            plain = nn.Parameter(torch.ones(1))
            optimizers = [engine.make(rule, [p], lr=0.1) for p in (param, plain)]
            for gradient in (first, z.conj().imag, torch.ones(1), z.conj().imag):
                step(setting, optimizers[0], [gradient])
                step(setting, optimizers[1], [gradient.resolve_neg().clone()])
            engine.assert_same(engine.snapshot(optimizers[0]), engine.snapshot(optimizers[1]), setting)


def test_a_parameter_that_is_a_negative_view_is_updated_or_refused() -> None:
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        param = nn.Parameter(torch.tensor([1.0 + 2.0j]).conj().imag)
        assert param.is_neg() and param.item() == -2.0
        try:
            step(setting, engine.make("sgd", [param], lr=0.5), [torch.ones(1)])
        except (TypeError, ValueError, RuntimeError):
            continue
        assert param.item() == -2.5, setting


def test_a_parameter_that_is_a_conjugate_view_is_updated_or_refused() -> None:
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        param = nn.Parameter(torch.tensor([1.0 + 2.0j]).conj())
        try:
            step(setting, engine.make("sgd", [param], lr=0.5), [torch.tensor([1.0 + 1.0j])])
        except (TypeError, ValueError, RuntimeError):
            continue
        assert param.item() == 0.5 - 2.5j, setting


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("rule", [rule for rule in cases.RULES if rule not in cases.WITHOUT_METRIC])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "every_other", "columns"])
def test_complex_parameters_as_in_torch(layout: str, rule: str, dtype: torch.dtype) -> None:
    values = [torch.randn(shape, dtype=dtype) for shape in [(), (0,), (5, 7), (2, 3, 4, 5)]]
    steps = [[torch.randn_like(value) for value in values] for _ in range(3)]
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        outcomes = []
        for library, place in ((regkernels.optim, cases.LAYOUTS[layout]), (torch.optim, torch.clone)):
            params = [nn.Parameter(place(value)) for value in values]
            optimizer = engine.make(rule, params, library, lr=0.1, weight_decay=0.3)
            for gradients in steps:
                # Conjugate views, which backward hands out for many functions; torch's optimizers refuse some of them.
                views = [place(gradient).conj() for gradient in gradients]
                step(setting, optimizer, views if place is not torch.clone else [g.resolve_conj() for g in views])
            outcomes.append(engine.snapshot(optimizer))
        engine.assert_close(*outcomes, setting, rtol=1e-12 if dtype == torch.complex128 else 1e-5)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_states_are_as_wide_as_the_arithmetic(dtype: torch.dtype, layout: str) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for rule in ("momentum", "amsgrad"):
        params = [nn.Parameter(cases.LAYOUTS[layout](torch.randn(shape).to(dtype))) for shape in cases.SHAPES]
        optimizer = engine.make(rule, params)
        for _ in range(2):
            step(engine.kernels()[-1], optimizer, [torch.randn_like(param) for param in params])
        for param in params:
            states = {name: value for name, value in optimizer.state[param].items() if name != "step"}
            assert states.keys() == set(cases.STATES[cases.RULES[rule][0]])
            assert all(state.dtype == wide and state.shape == param.shape for state in states.values())


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_soft_threshold_and_penalties_in_every_layout(layout: str) -> None:
    for dtype in cases.DTYPES:
        for shape in cases.SHAPES:
            value = torch.randn(shape).to(dtype)
            x = cases.LAYOUTS[layout](value).requires_grad_()
            around, leaf = cases.surroundings(x), value.clone().requires_grad_()
            for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
                with engine.active(setting):
                    engine.assert_same_bits(prox.soft_threshold(x, 0.3), prox.soft_threshold(value, 0.3))
                    totals = [regkernels.elastic_net_penalty(tensor, 0.3, 0.7) for tensor in (x, leaf)]
                    torch.testing.assert_close(*totals, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
                    ours, expected = (torch.autograd.grad(*pair) for pair in zip(totals, (x, leaf), strict=True))
                    engine.assert_same_bits(ours[0], expected[0], f"{setting}, {shape}")
            for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
                x = cases.LAYOUTS[layout](value)
                with engine.active(setting):
                    assert prox.soft_threshold_(x, 0.3) is x
                    engine.assert_same_bits(x, prox.soft_threshold(value, 0.3), f"{setting}, {shape}")
                engine.assert_same_bits(cases.surroundings(x), around, "written beside the tensor")


def test_dense_is_what_fills_one_run_of_memory_with_each_element_once() -> None:
    views = [place(torch.zeros(shape)) for place in cases.LAYOUTS.values() for shape in cases.SHAPES]
    views += [torch.zeros(8).unfold(0, 3, 1), torch.zeros(3, 1).expand(3, 4), torch.zeros(4, 6).flip(0)[::2]]
    for view in views:
        places = torch.arange(view.untyped_storage().size() // 4)
        filled = places.as_strided(view.shape, view.stride(), view.storage_offset()).flatten().sort().values
        one_run = torch.equal(filled, filled[:1] + torch.arange(len(filled)))
        assert is_dense(view) == one_run, (view.shape, view.stride())
        like = torch.zeros(view.shape)
        assert has_layout(view, like) == (view.is_contiguous() or not view.numel()), (view.shape, view.stride())
