"""Saving, loading and copying optimizers with low-precision weights and states, and what they refuse."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from regkernels import optim
from regkernels.table.formats import KEPT_DTYPES, ROUNDINGS
from tests.support import cases, engine
from tests.support.training import assert_equal, each_optimizer, network, ours, theirs, train

pytestmark = pytest.mark.usefixtures("one_thread")

BF16 = torch.bfloat16
each_precision = pytest.mark.parametrize("precision", [p for p in cases.PRECISIONS if BF16 in p.dtypes], ids=str)


def assert_same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    found, expected = engine.snapshot(a), engine.snapshot(b)
    assert {name: value.dtype for name, value in found.items()} == {name: v.dtype for name, v in expected.items()}
    engine.assert_same(found, expected)


def through_a_file(model: nn.Module, optimizer: torch.optim.Optimizer, again: Callable[..., Any]) -> Any:
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(BF16)
    restored = again(other)
    restored.load_state_dict(saved["optimizer"])  # before the weights: neither may need the other
    other.load_state_dict(saved["model"])
    return other, restored


def in_place(model: nn.Module, optimizer: torch.optim.Optimizer, again: Callable[..., Any]) -> Any:
    restored = again(model)
    restored.load_state_dict(optimizer.state_dict())
    return model, restored


def deep_copy(model: nn.Module, optimizer: torch.optim.Optimizer, again: Callable[..., Any]) -> Any:
    return copy.deepcopy((model, optimizer))


def pickled(model: nn.Module, optimizer: torch.optim.Optimizer, again: Callable[..., Any]) -> Any:
    return pickle.loads(pickle.dumps((model, optimizer)))


@each_optimizer
@each_precision
@pytest.mark.parametrize("way", [through_a_file, in_place, deep_copy, pickled])
def test_training_goes_on_with_the_same_bits(way: Callable[..., Any], precision: cases.Precision, name: str) -> None:
    def make(model: nn.Module) -> optim.Optimizer:
        return ours(name, model.parameters(), l1=0.01, **precision.options)

    model = network(BF16)
    twin = copy.deepcopy(model)
    expected = make(twin)
    train(expected, twin, range(8))
    optimizer = make(model)
    train(optimizer, model, range(4))
    model, optimizer = way(model, optimizer, make)
    train(optimizer, model, range(4, 8))
    assert_equal(model, twin)
    assert_same_state(optimizer, expected)
    for state in optimizer.state.values():
        for key, value in state.items():
            usual = precision.state_dtype or torch.float32
            draws = precision.param_rounding == "stochastic" or precision.state_dtype == BF16
            count = torch.float64 if draws else torch.float32  # random numbers depend on it
            assert value.dtype == (count if key == "step" else KEPT_DTYPES.get(key, usual))


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(ROUNDINGS, 2)))
@pytest.mark.parametrize("narrow", [False, True])
def test_another_rounding_begins_with_the_weights_as_they_are(before: str, after: str, narrow: bool) -> None:
    """What the rounding before kept is dropped: later, after a change back, it would be out of date."""
    model = network(BF16)
    first = ours("adamw", model.parameters(), param_rounding=before, state_dtype=BF16 if narrow else None)
    train(first, model, range(3))
    saved = first.state_dict()
    plain = copy.deepcopy(saved)
    for state in plain["state"].values():
        for key in KEPT_DTYPES:
            state.pop(key, None)
    twin = copy.deepcopy(model)
    optimizers = []
    for state_dict, net in ((saved, model), (plain, twin)):
        optimizer = ours("adamw", net.parameters(), param_rounding=after, state_dtype=None if narrow else BF16)
        optimizer.load_state_dict(state_dict)
        train(optimizer, net, range(3, 6))
        optimizers.append(optimizer)
    assert_equal(model, twin)
    assert_same_state(*optimizers)
    for state in optimizers[0].state_dict()["state"].values():
        assert state.keys() & KEPT_DTYPES.keys() == {after} & KEPT_DTYPES.keys()


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_states_of_torch_are_taken_and_given(precision: cases.Precision) -> None:
    """torch carries what it does not know along."""
    model = network(BF16 if BF16 in precision.dtypes else torch.float32)
    published = theirs("adamw", model.parameters())
    train(published, model, range(3))
    optimizer = ours("adamw", model.parameters(), **precision.options)
    optimizer.load_state_dict(published.state_dict())
    train(optimizer, model, range(3, 6))
    assert all(state["step"].item() == 6 for state in optimizer.state.values())
    published.load_state_dict(optimizer.state_dict())
    train(published, model, range(6, 8))
    # What torch carried along is out of date. A run goes on from the weights, as without it.
    if precision.param_rounding == "remainder" and BF16 in precision.dtypes:
        optimizer = ours("adamw", model.parameters(), **precision.options)
        with pytest.raises(TypeError, match=r"state 'remainder' of parameter 0 .* must have torch\.int16; delete it"):
            optimizer.load_state_dict(published.state_dict())
        return
    back, plain = published.state_dict(), copy.deepcopy(published.state_dict())
    for state in plain["state"].values():
        for key in KEPT_DTYPES:
            state.pop(key, None)
    twin = copy.deepcopy(model)
    for state_dict, net in ((back, model), (plain, twin)):
        optimizer = ours("adamw", net.parameters(), **precision.options)
        optimizer.load_state_dict(state_dict)
        train(optimizer, net, range(8, 10))
    assert_equal(model, twin)


def test_a_run_of_sgd_that_did_not_count_goes_on_counting() -> None:
    model = network(BF16)
    before = ours("momentum", model.parameters())
    train(before, model, range(3))
    assert all("step" not in state for state in before.state.values())
    after = ours("momentum", model.parameters(), param_rounding="stochastic")
    after.load_state_dict(before.state_dict())
    buffers = [state["momentum_buffer"].clone() for state in after.state.values()]
    train(after, model, range(3, 5))
    assert all(state["step"].item() > 0 for state in after.state.values())
    assert all(buffer.any() for buffer in buffers)


def test_replicas_agree_and_seeds_differ() -> None:
    def run(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 99), nn.Tanh(), nn.Linear(99, 3)).to(BF16)
        optimizer = ours("adam", model.parameters(), param_rounding="stochastic", state_dtype=BF16, seed=seed)
        torch.manual_seed(seed + 1000 * len(found))  # torch's own random state plays no part
        train(optimizer, model, range(3))
        return [param.detach().clone() for param in model.parameters()]

    found: list[list[torch.Tensor]] = []
    for seed in (0, 0, 1):
        found.append(run(seed))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


# --- what is refused ---


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"param_rounding": "up"},
        ValueError,
        "param_rounding must be one of 'nearest', 'stochastic', 'remainder', 'master', got 'up'",
    ),
    ({"param_rounding": None}, ValueError, "param_rounding must be one of .*, got None"),
    ({"param_rounding": ["nearest"]}, ValueError, r"param_rounding must be one of .*, got \['nearest'\]"),
    ({"state_dtype": torch.float16}, ValueError, r"state_dtype must be one of None, .*bfloat16, got torch\.float16"),
    ({"state_dtype": "bfloat16"}, ValueError, "state_dtype must be one of None, .*, got 'bfloat16'"),
    ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*32\), got -1; take it modulo"),
    ({"seed": 2**32}, ValueError, r"seed must be in \[0, 2\*\*32\), got 4294967296; take it modulo"),
    ({"seed": 1.0}, TypeError, "seed must be a whole number, got 1.0"),
    ({"seed": True}, TypeError, "seed must be a whole number, got True"),
    ({"seed": "7"}, TypeError, "seed must be a whole number, got '7'"),
    ({"seed": None}, TypeError, "seed must be a whole number, got None"),
    ({"rounding": "master"}, TypeError, "no argument 'rounding'.*param_rounding"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD_ARGUMENTS, ids=str)
@pytest.mark.parametrize("kind", cases.STATES)
def test_arguments(kind: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        getattr(optim, kind)([nn.Parameter(torch.ones(3))], lr=0.1, **arguments)


def test_seeds_of_every_kind_of_whole_number() -> None:
    for seed in (0, 2**32 - 1, numpy.int64(5), numpy.uint32(2**32 - 1)):
        optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1, seed=seed)


BAD_PARAMETERS = [
    ({"param_rounding": "remainder"}, torch.float16, '"remainder" needs bfloat16 weights.*is float16.*"master"'),
    ({"state_dtype": BF16}, torch.float64, r"state_dtype=torch\.bfloat16 needs .* is float64; leave it out"),
    ({"state_dtype": torch.float32}, torch.float64, r"state_dtype=torch\.float32 needs .* is float64; leave it out"),
    ({"state_dtype": BF16}, torch.complex64, r"state_dtype=torch\.bfloat16 needs real .* torch\.complex64; leave it"),
]


@pytest.mark.parametrize(("options", "dtype", "text"), BAD_PARAMETERS, ids=str)
def test_parameters_that_do_not_fit(options: dict[str, Any], dtype: torch.dtype, text: str) -> None:
    """Nothing has changed by then, and without that parameter training goes on."""
    good, bad = nn.Parameter(torch.ones(9, dtype=BF16)), nn.Parameter(torch.ones(7, dtype=dtype))
    optimizer = optim.Adam([good], lr=0.1, **options)
    with pytest.raises(ValueError, match=f"(?=.*parameter 0 of param group 1).*{text}"):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1 and (good == 1).all()
    good.grad = torch.ones_like(good)
    optimizer.step()
    assert (good < 1).all()


def test_roundings_leave_wide_and_complex_weights_as_they_are() -> None:
    for rounding in ROUNDINGS:
        for dtype in (torch.float64, torch.float32, torch.complex64, torch.complex128):
            values, gradient = torch.randn(2, 20, dtype=dtype)
            found = []
            for options in ({}, {"param_rounding": rounding, "seed": 5}):
                param = nn.Parameter(values.clone())
                param.grad = gradient
                optimizer = optim.Adam([param], lr=0.1, **options)
                optimizer.step()
                assert optimizer.state[param].keys() == {"step", "exp_avg", "exp_avg_sq"}
                found.append(param.detach())
            assert torch.equal(*found)
