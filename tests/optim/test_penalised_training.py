"""Penalties in everything around a step: checkpoints, copies, memory layouts, steps within the backward pass, torch.compile."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import FlatParameters, optim
from tests.support import cases, engine
from tests.support.penalised_cases import PENALTIES, STRENGTHS, some_weights
from tests.support.releasing import Twins
from tests.support.training import backward, network, train


def bits(optimizer: optim.Optimizer) -> engine.Outcome:
    return {name: tensor for name, tensor in engine.snapshot(optimizer).items() if not name.startswith("stats")}


# --- saved and copied ---


def penalised_groups(model: nn.Module) -> list[dict[str, Any]]:
    first, last = model[0], model[2]
    return [
        {
            "params": [first.weight, first.bias],
            "l1": 0.01,
            "l1_weights": [some_weights(p.detach()) for p in first.parameters()],
        },
        {"params": [last.weight], "scad": 0.02, "scad_a": 3.0, "positive": True},
        {"params": [last.bias], "box": (-0.5, 0.5), "weight_decay_mode": "cautious", "weight_decay": 0.1},
    ]


def _by_file(optimizer: optim.Optimizer, other: optim.Optimizer) -> optim.Optimizer:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


COPIES: dict[str, Callable[[optim.Optimizer, optim.Optimizer], optim.Optimizer]] = {
    "state dict": lambda optimizer, other: other.load_state_dict(copy.deepcopy(optimizer.state_dict())) or other,
    "file": _by_file,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_resumed_run_is_the_same(how: str) -> None:
    model = network()
    optimizer = optim.AdamW(penalised_groups(model), lr=0.02)
    train(optimizer, model, range(3))
    copied = copy.deepcopy(model)
    plain = [{"params": group["params"]} for group in penalised_groups(copied)]
    resumed = COPIES[how](optimizer, optim.AdamW(plain, lr=0.5))
    for group, own in zip(resumed.param_groups, optimizer.param_groups, strict=True):
        assert group.keys() == own.keys()
    for one, other in ((optimizer, model), (resumed, copied)):
        train(one, other, range(3, 6))
    engine.assert_same(bits(resumed), bits(optimizer))


def test_a_checkpoint_in_another_type() -> None:
    """l1_weights are converted as states are, and where they come from is not changed by what becomes of them."""
    double, single = (network(dtype) for dtype in (torch.float64, torch.float32))
    saved = optim.SGD(penalised_groups(double), lr=0.02).state_dict()
    optimizer = optim.SGD([{"params": group["params"]} for group in penalised_groups(single)], lr=0.02)
    optimizer.load_state_dict(saved)
    loaded, given = (groups[0]["l1_weights"] for groups in (optimizer.param_groups, saved["param_groups"]))
    for weight, original in zip(loaded, given, strict=True):
        assert weight.dtype == torch.float32 and torch.equal(weight, original.float())
    loaded[0].zero_()
    assert given[0].any()
    train(optimizer, single, range(2))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_copies(how: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = optim.AdamW(penalised_groups(model), lr=0.02)
    train(optimizer, model, range(2))
    copied, twin = how((model, optimizer))
    for one, other in ((optimizer, model), (twin, copied)):
        train(one, other, range(2, 4))
    engine.assert_same(bits(twin), bits(optimizer))


def test_a_checkpoint_of_torch_keeps_the_penalties() -> None:
    model, twin = network(), network()
    theirs = torch.optim.Adam(twin.parameters(), lr=0.03)
    train(theirs, twin, range(2))
    optimizer = optim.Adam(model.parameters(), lr=0.1, mcp=0.2, positive=True)
    optimizer.load_state_dict(theirs.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["mcp"], group["positive"]) == (0.03, 0.2, True)
    theirs.load_state_dict(optimizer.state_dict())


# --- however the parameters lie ---


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_layouts(penalty: str, layout: str) -> None:
    case = cases.Case("amsgrad", "prox", "prox")
    options = {**PENALTIES[penalty]}
    if options.keys() & set(STRENGTHS):
        options["l1"] = 0.0
    lay_out = cases.LAYOUTS[layout]
    values, gradient = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    weights = some_weights(values)
    outcomes = []
    for place in (Tensor.clone, lay_out):
        w = nn.Parameter(place(values))
        if penalty == "weighted":
            options["l1_weights"] = [place(weights) if place is Tensor.clone else weights.clone()]
        optimizer = engine.make(case.rule, [w], **{**case.options, **options})
        for _ in range(2):
            w.grad = gradient.clone()
            optimizer.step()
        outcomes.append(w.detach())
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_flat_parameters(penalty: str) -> None:
    outcomes = []
    for flat in (False, True):
        torch.manual_seed(0)
        model = network(torch.float32)
        if flat:
            FlatParameters(model)
        options = {**PENALTIES[penalty]}
        if penalty == "weighted":
            options |= {"l1": 0.1, "l1_weights": [some_weights(p.detach()) for p in model.parameters()]}
        optimizer = optim.Adam(model.parameters(), lr=0.02, weight_decay=0.1, **options)
        train(optimizer, model, range(3))
        outcomes.append(bits(optimizer))
    engine.assert_same(*outcomes)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_steps_within_the_backward_pass(penalty: str) -> None:
    options = {**PENALTIES[penalty]}

    def make(groups: list[dict[str, Any]]) -> optim.Optimizer:
        if penalty == "weighted":
            groups = [{**group, "l1_weights": [some_weights(p.detach()) for p in group["params"]]} for group in groups]
            options.pop("l1_weights", None)
            options["l1"] = 0.05
        for group in groups:
            group.pop("l1", None)
        return optim.AdamW(groups, lr=0.02, weight_decay=0.1, stats=True, **options)

    twins = Twins(make)
    twins.train()
    for optimizer in (twins.after, twins.within):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
            if penalty == "weighted":
                group["l1_weights"] = [2 * weights for weights in group["l1_weights"]]
            if penalty in STRENGTHS:
                group[penalty] = 0.0
    twins.train()


def test_a_compiled_step_is_the_eager_one() -> None:
    outcomes = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = network(torch.float32)
        optimizer = optim.AdamW(penalised_groups(model), lr=0.02)

        def step(model: nn.Module = model, optimizer: optim.Optimizer = optimizer) -> None:
            backward(model, 1)
            optimizer.step()

        whole = torch.compile(step, backend="eager") if compiled else step
        for strength in (0.02, 0.02, 0.0, 0.05):
            optimizer.param_groups[1]["scad"] = strength
            whole()
        outcomes.append(bits(optimizer))
    torch._dynamo.reset()
    engine.assert_same(outcomes[1], outcomes[0])
