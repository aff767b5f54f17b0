"""Steps in the backward pass against steps after it: the same bits, whatever else happens to the optimizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

from regkernels import optim
from tests.support import cases, engine
from tests.support.releasing import Twins, adamw, closure_of, data, groups_of


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case) -> None:
    Twins(lambda groups: engine.make(case.rule, groups, stats=True, **case.options)).train()


@pytest.mark.parametrize("bucket_bytes", [0, pytest.param(100, marks=pytest.mark.interpreted), 1 << 20])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_dtype_and_bucket(case: cases.Case, dtype: torch.dtype, bucket_bytes: int) -> None:
    Twins(lambda groups: engine.make(case.rule, groups, stats=True, **case.options), dtype, bucket_bytes).train()


LOW_PRECISION: list[dict[str, Any]] = [
    {"param_rounding": "stochastic", "seed": 5},
    {"param_rounding": "remainder"},
    {"param_rounding": "master", "state_dtype": torch.bfloat16, "seed": 5},
]


@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_low_precision(rule: str, options: dict[str, Any]) -> None:
    """Random numbers are those of the parameter's place in the whole optimizer."""
    Twins(lambda groups: engine.make(rule, groups, **cases.STRENGTHS, **options), torch.bfloat16, before=1).train()


def test_begun_in_the_middle_of_a_training() -> None:
    twins = Twins(adamw, before=2)
    states = {param: state["exp_avg"].data_ptr() for param, state in twins.within.state.items()}
    assert len(states) == 7
    twins.train()
    for param, address in states.items():
        assert twins.within.state[param]["exp_avg"].data_ptr() == address


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(tensor_lr: bool, recwarn: pytest.WarningsRecorder) -> None:
    twins = Twins(lambda groups: adamw(groups, lr=torch.tensor(0.02) if tensor_lr else 0.02))
    schedulers = [lr_scheduler.ExponentialLR(o, 0.5) for o in (twins.after, twins.within)]
    for step in range(3):
        twins.train(1)
        for scheduler in schedulers:
            scheduler.step()
        for optimizer in (twins.after, twins.within):
            optimizer.param_groups[0]["l1"] = 0.1 * step
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


@pytest.mark.interpreted
def test_branches_that_take_turns() -> None:
    Twins(adamw).train(6, lambda step: ("left", "right", "right")[step % 3])


@pytest.mark.interpreted
def test_micro_batches_of_different_branches() -> None:
    """`left` has a gradient from the first one only."""
    twins = Twins(adamw)
    for step in range(3):
        for branch in ("left", "right", "right"):
            twins.backward(twins.models[0], step, branch)
        twins.after.step()
        twins.after.zero_grad()
        with twins.release.accumulate():
            for branch in ("left", "right"):
                twins.backward(twins.models[1], step, branch)
                assert twins.models[1].first.weight.grad is not None
        twins.backward(twins.models[1], step, "right")
        twins.assert_same(step)


def test_step_updates_what_was_accumulated() -> None:
    twins = Twins(adamw)
    for step in range(3):
        twins.backward(twins.models[0], step)
        twins.after.step()
        twins.after.zero_grad()
        with twins.release.accumulate():
            twins.backward(twins.models[1], step)
        twins.within.step()
        twins.assert_same(step)


@pytest.mark.interpreted
def test_a_training_loop_stays_as_it_is() -> None:
    """Who calls `step` and `zero_grad` as always does not step twice, and does not lose the sums."""
    twins = Twins(adamw)
    for step in range(3):
        for model, optimizer in zip(twins.models, (twins.after, twins.within), strict=True):
            optimizer.zero_grad()
            twins.backward(model, step)
            optimizer.step()
        twins.assert_same(step)
    assert twins.within.state[twins.models[1].scale]["step"] == 3
    assert twins.within.stats.nonzeros.sum() > 0


def test_closures() -> None:
    twins = Twins(adamw)
    for step in range(3):
        losses = []
        for model, optimizer in zip(twins.models, (twins.after, twins.within), strict=True):
            losses.append(optimizer.step(closure_of(model, optimizer, step)))
        assert torch.equal(*losses)
        twins.assert_same(step)


def test_complex_parameters() -> None:
    models = [nn.Linear(3, 2, dtype=torch.complex64)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [optim.Adam(model.parameters(), lr=0.1) for model in models]
    optim.step_in_backward(optimizers[1], bucket_bytes=0)
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + step * 1j)).abs().sum().backward()
            optimizer.step()
        engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]))


def test_recomputed_activations() -> None:
    models = [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))]
    models.append(copy.deepcopy(models[0]))
    optimizers = [optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    optim.step_in_backward(optimizers[1], bucket_bytes=0)
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            x = torch.sin(torch.arange(8.0).view(2, 4) + step)
            checkpoint(model, checkpoint(model, x, use_reentrant=False), use_reentrant=False).sum().backward()
            optimizer.step()
    engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]))


# --- everything around ---


def test_state_dicts_both_ways() -> None:
    twins = Twins(adamw)
    twins.train(2)
    saved = copy.deepcopy(twins.within.state_dict())
    twins.after.load_state_dict(saved)
    twins.train(2)
    twins.within.load_state_dict(copy.deepcopy(twins.after.state_dict()))
    twins.train(2)
    assert saved.keys() == twins.after.state_dict().keys()


def test_states_that_are_exchanged_are_used() -> None:
    twins = Twins(adamw)
    twins.train(2)
    for model, optimizer in zip(twins.models, (twins.after, twins.within), strict=True):
        optimizer.state[model.first.weight]["exp_avg"] = torch.full((5, 5), 0.5)
        optimizer.state[model.scale]["step"].fill_(9)
    twins.train(2)
    assert twins.within.state[twins.models[1].scale]["step"] == 11


@pytest.mark.interpreted
def test_late_groups_and_parameters() -> None:
    """A group that was added, and a parameter that was frozen until now."""
    twins = Twins(adamw)
    twins.train(1)
    late = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param, model, optimizer in zip(late, twins.models, (twins.after, twins.within), strict=True):
        optimizer.add_param_group({"params": [param], "lr": 0.5})
        model.frozen.bias.requires_grad_(True)
    for step in range(3):
        twins.after.zero_grad()
        for param, model in zip(late, twins.models, strict=True):
            (model(data(step, torch.float32)).square().mean() + (param * step).square().sum()).backward()
        twins.after.step()
        assert late[1].grad is None
        twins.assert_same(step)
    twins.train(2)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_group_that_is_gone(gone: int) -> None:
    twins = Twins(adamw, bucket_bytes=0)
    twins.train(2)
    for optimizer in (twins.after, twins.within):
        del optimizer.param_groups[gone]
    twins.models[0].zero_grad()
    kept = [param.detach().clone() for param in groups_of(twins.models[1])[gone]["params"]]
    twins.backward(twins.models[1], 3)
    params = groups_of(twins.models[1])
    assert all(torch.equal(param, old) for param, old in zip(params[gone]["params"], kept, strict=True))
    assert any(param.grad is not None for param in params[gone]["params"])
    assert all(param.grad is None for param in params[1 - gone]["params"])
    twins.backward(twins.models[0], 3)
    twins.after.step()
    engine.assert_same(engine.snapshot(twins.within), engine.snapshot(twins.after))


@pytest.mark.interpreted
def test_remove() -> None:
    twins = Twins(adamw)
    twins.train(2)
    twins.release.remove()
    twins.release.remove()
    for step in range(2):
        for model, optimizer in zip(twins.models, (twins.after, twins.within), strict=True):
            optimizer.zero_grad()
            twins.backward(model, step)
            assert model.first.weight.grad is not None
            optimizer.step()
        engine.assert_same(engine.snapshot(twins.within), engine.snapshot(twins.after), step)
    twins.within.zero_grad()
    twins.release = optim.step_in_backward(twins.within)
    twins.train(2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_step_as_always(duplicate: Callable[[Any], Any]) -> None:
    twins = Twins(adamw)
    twins.train(1)
    other = duplicate(twins.within)
    params = [param for group in other.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in params]
    sum(param.square().sum() for param in params if param.requires_grad).backward()
    assert all(param.grad is not None for param in params if param.requires_grad)
    assert all(map(torch.equal, params, before))
    other.step()
    assert not all(map(torch.equal, params, before))
    twins.train(1)


def test_after_a_backward_that_failed() -> None:
    """What it updated stays updated; from the next one on, each parameter is updated once again."""
    twins = Twins(adamw, bucket_bytes=1 << 20)
    twins.train(1)
    model = twins.models[1]

    def fail(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    hook = model.first.weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        twins.backward(model, 1)
    hook.remove()
    twins.within.zero_grad()
    twins.train(2)


def test_an_option_that_is_not_allowed_is_found_before_anything_is_updated() -> None:
    twins = Twins(adamw, bucket_bytes=0)
    twins.train(1)
    before = engine.snapshot(twins.within)
    twins.within.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr must be >= 0, got -1.0 \(param group 1\)"):
        twins.backward(twins.models[1], 1)
    twins.within.param_groups[1]["lr"] = 0.03
    after = engine.snapshot(twins.within)
    assert all(torch.equal(after[key], value) for key, value in before.items() if not key.startswith("stats"))


def test_a_message_names_the_parameter_of_the_whole_optimizer() -> None:
    params = [(name, nn.Parameter(torch.ones(2, 1))) for name in ("one", "two")]
    optimizer = optim.SGD(params, lr=0.1)
    optim.step_in_backward(optimizer, bucket_bytes=0)
    embedded = nn.functional.embedding(torch.tensor([0]), params[1][1], sparse=True)
    with pytest.raises(RuntimeError, match=r"parameter 1 of param group 0 two.* only dense gradients"):
        embedded.sum().backward()
