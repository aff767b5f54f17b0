"""A step takes the optimizer as it finds it: mixed groups, changes since the step before, flat parameters, autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import FlatParameters
from tests.support import cases, engine, stories

interpreted = pytest.mark.interpreted

STORY_RULES = ("sgd", "dampening", "nesterov", "adam", "amsgrad", "adamw", "rmsprop_momentum", "adagrad")
LIBRARIES = [torch.optim, regkernels.optim]


def told() -> Iterator[Any]:
    """Every story of every rule. What the kernels are given does not depend on the rule but by its states: of each story, the
    interpreter runs the rule with the most of them, and one of the others in turn."""
    others = [rule for rule in STORY_RULES if rule != "amsgrad"]
    for index, (story, rule) in enumerate(itertools.product(stories.STORIES, STORY_RULES)):
        chosen = ("amsgrad", others[index // len(STORY_RULES) % len(others)])
        marks = pytest.mark.interpreted if rule in chosen else ()
        yield pytest.param(story, rule, marks=marks, id=f"{story.__name__}-{rule}")


@pytest.mark.parametrize(("story", "rule"), list(told()))
def test_as_torch_does_and_the_kernels_as_the_reference(story: engine.Scenario, rule: str) -> None:
    engine.assert_plays_alike(story, rule)


def every_kind_of_group(rule: str) -> Iterator[dict[str, Any]]:
    """Options of groups: each mode, each sign, several strengths."""
    modes = [case for case in cases.MATRIX if case.rule == rule and case.weight_decay_mode is not None]
    for index, case in enumerate(modes):
        maximize = bool(index % 2)
        yield {**case.options, "lr": 0.01 * (index + 1), "l1": 0.1 * (index % 3), "maximize": maximize}


@interpreted
@pytest.mark.parametrize("rule", cases.RULES)
def test_one_optimizer_for_all_is_an_optimizer_for_each(rule: str) -> None:
    """Types, modes and first gradients mixed; every parameter is updated as if it were alone."""
    options = list(every_kind_of_group(rule))
    kinds = len(cases.DTYPES)
    sizes = [(1, 17, 100)[(group - kind) % 3] for group in range(len(options)) for kind in range(kinds)]
    values = [torch.randn(size).to(dtype) for size, dtype in zip(sizes, cases.DTYPES * len(options), strict=True)]
    steps = [[torch.randn(value.shape).to(value.dtype) for value in values] for _ in range(3)]
    for setting in (engine.REFERENCE, *engine.kernels(threads=(2,))):
        together, apart = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
        pieces = [slice(index * kinds, (index + 1) * kinds) for index in range(len(options))]
        groups = [{"params": together[piece], **own} for piece, own in zip(pieces, options, strict=True)]
        optimizer = engine.make(rule, groups)
        alone = [
            engine.make(rule, [param], **own)
            for piece, own in zip(pieces, options, strict=True)
            for param in apart[piece]
        ]
        with engine.active(setting):
            for number, gradients in enumerate(steps):
                for index, (one, other, gradient) in enumerate(zip(together, apart, gradients, strict=True)):
                    present = (index + number) % 3 > 0 or number == 2
                    one.grad, other.grad = (gradient, gradient) if present else (None, None)
                for each in (optimizer, *alone):
                    each.step()
        for one, other, lonely in zip(together, apart, alone, strict=True):
            engine.assert_same_bits(one, other, str(setting))
            assert optimizer.state[one].keys() == lonely.state[other].keys()
            for name, state in optimizer.state[one].items():
                engine.assert_same_bits(state, lonely.state[other][name], f"{setting}: {name}")


@interpreted
@pytest.mark.parametrize("layout", ["contiguous", "every_other"])
@pytest.mark.parametrize("rule", cases.RULES)
def test_without_a_gradient_nothing_of_a_parameter_changes(rule: str, layout: str) -> None:
    """No bit of the weight or of a state, no count; regularisation is no exception."""
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        params = [nn.Parameter(cases.LAYOUTS[layout](torch.randn(33))) for _ in range(3)]
        optimizer = engine.make(rule, params, lr=0.1, l1=0.5, weight_decay=0.5)
        for count in (3, 1, 0, 2):
            for index, param in enumerate(params):
                param.grad = torch.randn(33) if index < count else None
            before = engine.snapshot(optimizer)
            with engine.active(setting):
                optimizer.step()
            after = engine.snapshot(optimizer)
            for name, tensor in before.items():
                updated = int(name.split("parameter ")[1][0]) < count
                same = torch.equal(engine.bits(after[name]), engine.bits(tensor))
                assert same != updated, f"{setting}: {name} with gradients for the first {count}"


@interpreted
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every_other"])
def test_data_of_another_type_and_shape(layout: str) -> None:
    """A rule without states takes them as they are from one step to the next."""
    place = cases.LAYOUTS[layout]
    kinds = [(torch.float64, (5, 7)), (torch.float32, (5, 7)), (torch.float32, (3, 4)), (torch.bfloat16, (3, 4))]
    values, gradients = ([torch.randn(shape).to(dtype) for dtype, shape in kinds] for _ in range(2))
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        param = nn.Parameter(place(values[0]))
        optimizer = engine.make("sgd", [param], lr=0.3, l1=0.1, stats=True)
        for value, gradient in zip(values, gradients, strict=True):
            param.grad, param.data = None, place(value)
            fresh = nn.Parameter(value.clone())
            param.grad, fresh.grad = place(gradient), gradient
            other = engine.make("sgd", [fresh], lr=0.3, l1=0.1, stats=True)
            with engine.active(setting):
                optimizer.step()
                other.step()
            engine.assert_same(engine.snapshot(optimizer), engine.snapshot(other), setting)


# --- FlatParameters ---


def layered_values() -> list[Tensor]:
    """Every type and shape, and in float32 every dense layout."""
    values = [torch.randn(shape).to(dtype) for dtype in cases.DTYPES for shape in (*cases.SHAPES, (64,), (16, 32))]
    return values + [
        cases.LAYOUTS[name](torch.randn(2, 3, 4, 5)) for name in ("transposed", "channels_last", "columns")
    ]


def give(way: str, optimizer: torch.optim.Optimizer, params: list[Tensor], gradients: list[Tensor]) -> None:
    """Puts gradients where a training loop would have them."""
    if way == "zero_grad, backward":
        optimizer.zero_grad()
        torch.autograd.backward([(p * g).sum() for p, g in zip(params, gradients, strict=True)])
    elif way == "None, backward":
        for param in params:
            param.grad = None
        torch.autograd.backward([(p * g).sum() for p, g in zip(params, gradients, strict=True)])
    elif way == "one replaced":
        for index, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
            if index == 5:
                param.grad = gradient.clone()
            else:
                param.grad.copy_(gradient)
    elif way == "in place":
        for param, gradient in zip(params, gradients, strict=True):
            param.grad.copy_(gradient)


@interpreted
@pytest.mark.parametrize("case", [cases.Case("sgd", "prox", "decoupled"), *cases.FEW], ids=str)
def test_flat_parameters_change_no_bit(case: cases.Case) -> None:
    values = layered_values()
    ways = ["zero_grad, backward", "zero_grad, backward", "in place", "None, backward", "in place"]
    ways += ["zero_grad, backward", "one replaced", "zero_grad, backward"]
    steps = [[torch.randn(value.shape).to(value.dtype) for value in values] for _ in ways]
    for setting in (engine.REFERENCE, *engine.kernels(threads=(2,))):
        separate, flat = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
        owner = FlatParameters(flat)
        optimizers = [engine.make(case.rule, params, stats=True, **case.options) for params in (separate, flat)]
        with engine.active(setting):
            for number, (way, gradients) in enumerate(zip(ways, steps, strict=True)):
                for optimizer, params in zip(optimizers, (separate, flat), strict=True):
                    give(way, optimizer, params, gradients)
                    optimizer.step()
                note = f"step {number} ({way}), {setting}"
                engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]), note)
                if way == "zero_grad, backward":
                    # What they are for: one segment per type (a FlatParameters that is not used as such is easily right).
                    table = optimizers[1]._stepper.plans[0].active.segments
                    numel = table[:, regkernels.table.segments.NUMEL]
                    assert int((numel > 0).sum()) == len(cases.DTYPES), note
                    assert int(numel.sum()) == sum(map(len, owner.weights)), note


@interpreted
def test_flat_parameters_of_several_groups_in_the_middle_of_training() -> None:
    """Moved between two steps, states and all; parameters of one group stay together and keep their options."""
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        outcomes = []
        for flat in (False, True):
            torch.manual_seed(0)
            params = stories.parameters((5, 7), (33,), (), (2, 3, 4), (16, 4))
            groups: list[dict[str, Any]] = [{"params": params[:2], "lr": 0.3}, {"params": params[2:], "l1": 0.0}]
            optimizer = engine.make("adam", groups, l1=0.1)
            with engine.active(setting):
                for step in range(4):
                    if flat and step == 2:
                        FlatParameters(groups)
                    optimizer.zero_grad()
                    torch.autograd.backward([(param * torch.randn_like(param)).sum() for param in params])
                    optimizer.step()
            outcomes.append(engine.snapshot(optimizer))
        engine.assert_same(*outcomes, setting)


# --- autograd ---


@interpreted
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
@pytest.mark.parametrize("lr", [0.1, 0.0])
@pytest.mark.parametrize("layout", [*cases.LAYOUTS, "flat", "complex"])
def test_backward_notices_a_step_since_forward(layout: str, lr: float, library: ModuleType) -> None:
    value = torch.randn(5, 7, dtype=torch.complex64 if layout == "complex" else None)
    for setting in (engine.REFERENCE, engine.kernels()[-1]):
        weight = nn.Parameter(cases.LAYOUTS.get(layout, Tensor.clone)(value))
        other = nn.Parameter(torch.randn(5, 7))
        if layout == "flat":
            FlatParameters([weight])
        optimizer = engine.make("adam", [weight, other], library, lr=lr)
        for _ in range(2):  # the first step builds what the second one reuses
            weight.grad = torch.ones_like(weight)
            saved, untouched = weight.square().abs().sum(), other.square().sum()
            with engine.active(setting):
                optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                saved.backward()
            untouched.backward()
            other.grad = None
            weight.square().abs().sum().backward()
