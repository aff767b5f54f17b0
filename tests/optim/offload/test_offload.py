"""An optimizer kept on the CPU against the plain one: the same bits, whatever else happens to it.

The CPU plays the accelerator; tests/gpu/test_offload.py does the same with a real one.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from regkernels import optim
from tests.support import cases, engine
from tests.support.offloading import Pair, of_case
from tests.support.penalised_cases import some_weights
from tests.support.releasing import data

BOTH = pytest.mark.parametrize("free", [False, True])


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case) -> None:
    of_case(case, free=True, stats=True, max_grad_norm=0.1).train()


@BOTH
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_dtype(case: cases.Case, dtype: torch.dtype, free: bool) -> None:
    of_case(case, free=free, dtype=dtype, stats=True).train()


OPTIONS: list[dict[str, Any]] = [
    {"max_grad_norm": 0.01},
    {"max_grad_norm": 0.01, "skip_nonfinite": True},
    {"l1": 0.0, "mcp": 0.1, "mcp_gamma": 1.7},
    {"group_l1": 0.1, "group_dim": 0},
    {"positive": True},
    {"param_rounding": "nearest"},
    {"param_rounding": "stochastic", "seed": 5},
    {"param_rounding": "remainder"},
    {"state_dtype": torch.bfloat16, "seed": 5},
]


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], free: bool) -> None:
    """Random numbers are those of the parameter's place among all."""
    pair = Pair(free=free, dtype=torch.bfloat16, stats=True, **{**cases.STRENGTHS, **options})
    pair.train(4)
    assert pair.offloaded.stats.grad_norm > 0.01, "nothing was clipped"


def test_clipping_is_by_the_norm_of_all_gradients() -> None:
    """Against torch's function, which finds the gradients only where they stay."""
    pair = Pair(optim.SGD, free=True, lr=1.0, max_grad_norm=0.05, stats=True)
    model = copy.deepcopy(pair.models[1])
    model(data(0, torch.float32)).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    assert norm > 0.05
    pair.backward(0)
    pair.offloaded.step()
    torch.testing.assert_close(pair.offloaded.stats.grad_norm, norm.double())
    for param, other in zip(pair.models[1].parameters(), model.parameters(), strict=True):
        group = next(g for g in pair.offloaded.param_groups if any(p is param for p in g["params"]))
        if other.grad is not None:
            torch.testing.assert_close(param.detach(), other.detach() - group["lr"] * other.grad)


@BOTH
def test_branches_that_take_turns(free: bool) -> None:
    Pair(free=free, **cases.STRENGTHS).train(6, lambda step: ("left", "right", "right")[step % 3])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_micro_batches(free: bool, dtype: torch.dtype) -> None:
    """`left` has a gradient from one of them only; autograd rounds every sum to the type of the weights."""
    pair = Pair(free=free, dtype=dtype, max_grad_norm=0.5, **cases.STRENGTHS)
    for step in range(3):
        pair.zero_grad()
        for number, branch in enumerate(("left", "right", "right", "right")):
            pair.backward(step + number, branch)
            assert all((param.grad is None) for param in pair.models[1].parameters()) == free
        pair.step(step)


def test_gradients_are_used_up_or_stay() -> None:
    for free in (False, True):
        pair = Pair(free=free, **cases.STRENGTHS)
        pair.backward(0)
        pair.step()
        before = copy.deepcopy(pair.models[1].state_dict())
        pair.offloaded.step()
        changed = [name for name, value in pair.models[1].state_dict().items() if not torch.equal(value, before[name])]
        assert bool(changed) == (not free)


def test_zero_grad_drops_what_waits() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    for _ in range(2):
        pair.backward(7)
        pair.backward(8)
        pair.zero_grad()
        pair.backward(1)
        pair.step()
        pair.zero_grad()


def test_gradients_that_are_changed_before_the_step() -> None:
    """As clip_grad_norm_ does, and through .data, which leaves no trace."""
    pair = Pair(**cases.STRENGTHS)
    for step in range(2):
        pair.zero_grad()
        pair.backward(step)
        for model, _ in pair.both:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            model.scale.grad.data.mul_(2)
            model.transposed.grad = torch.full_like(model.transposed, 0.1).t().contiguous().t()
        pair.step(step)


def test_gradients_set_by_hand() -> None:
    """They are added to those that have left the device."""
    pair = Pair(free=True, **cases.STRENGTHS)
    for step in range(2):
        pair.zero_grad()
        pair.backward(step)
        pair.models[0].scale.grad += 2.0
        pair.models[1].scale.grad = torch.tensor(2.0)
        pair.models[0].unused.grad, pair.models[1].unused.grad = torch.ones(7), torch.ones(7)
        pair.step(step)
        assert pair.models[1].unused.grad is None


@BOTH
@pytest.mark.parametrize("how", ["copied", "exchanged", "loaded", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_somebody_sets(how: str, dtype: torch.dtype, free: bool) -> None:
    pair = Pair(free=free, dtype=dtype, **cases.STRENGTHS)
    for step in range(3):
        pair.train(1)
        value = torch.full((5, 5), 0.5 + step).to(dtype)
        for model, optimizer in pair.both:
            weight = model.first.weight
            if how == "copied":
                with torch.no_grad():
                    weight.copy_(value)
            elif how == "exchanged":
                weight.data = value.clone()
            elif how == "loaded":
                model.load_state_dict({**model.state_dict(), "first.weight": value, "tied.weight": value})
            else:
                weight.data.copy_(value)
                if isinstance(optimizer, optim.CPUOffload):
                    optimizer.read_weights()
    pair.train(2)


def test_a_master_copy_survives_what_changes_nothing() -> None:
    """Its lower bits are kept where the weight is copied again, and the same."""
    pair = Pair(dtype=torch.bfloat16, lr=1e-4)
    for _ in range(10):
        pair.train(1)
        for model, _ in pair.both:
            model.load_state_dict(copy.deepcopy(model.state_dict()))
    state = pair.offloaded.state[pair.models[1].first.weight]
    assert not torch.equal(state["master"], pair.models[1].first.weight.float())


@BOTH
def test_frozen_and_thawed(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    pair.train(1)
    for frozen in (False, True, False):
        for model, _ in pair.both:
            model.frozen.bias.requires_grad_(not frozen)
            model.first.weight.requires_grad_(frozen)
        pair.train(2)


@BOTH
def test_late_groups(free: bool) -> None:
    pair = Pair(free=free, max_grad_norm=0.1, **cases.STRENGTHS)
    pair.train(1)
    late = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param, (_, optimizer) in zip(late, pair.both, strict=True):
        optimizer.add_param_group({"params": iter([param]), "lr": 0.5, "tag": "mine"})
        assert optimizer.param_groups[2]["tag"] == "mine"
    for step in range(3):
        pair.zero_grad()
        pair.backward(step)
        for param in late:
            (param * (step + 1)).square().sum().backward()
        pair.step(step)
    assert not torch.equal(late[1], torch.ones(3))


@BOTH
def test_groups_that_are_gone_and_parameters_that_are_exchanged(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    pair.train(2)
    for model, optimizer in pair.both:
        params = optimizer.param_groups[1]["params"]
        fresh = nn.Parameter(torch.full((5, 5), 0.1))
        params[[id(p) for p in params].index(id(model.first.weight))] = fresh
        model.first.weight = model.tied.weight = fresh
    pair.train(2)
    gone = pair.offloaded.param_groups[0]["params"]
    for _, optimizer in pair.both:
        del optimizer.param_groups[0]
    pair.train(2)
    pair.backward(2)
    assert any(param.grad is not None for param in gone), "taken by an optimizer that it no longer belongs to"


@BOTH
def test_lazy_and_converted_parameters(free: bool) -> None:
    models = [nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))]
    models.append(copy.deepcopy(models[0]))
    options = {**cases.STRENGTHS, "param_rounding": "master"}
    optimizers = [
        optim.AdamW(models[0].parameters(), **options),
        optim.CPUOffload(models[1].parameters(), free_gradients=free, **options),
    ]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(5, 4, dtype=torch.bfloat16 if step > 2 else torch.float32)).square().mean().backward()
            optimizer.step()
            if step == 2:
                model.to(torch.bfloat16)
        engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]), step)


@BOTH
def test_complex_empty_and_strided(free: bool) -> None:
    def params() -> list[nn.Parameter]:
        torch.manual_seed(1)
        base = torch.randn(6, 8)
        shapes = [torch.randn(3, 2, dtype=torch.complex64), torch.randn(0, 4), torch.randn(()), base[:, ::2]]
        shapes.append(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        return [nn.Parameter(value) for value in shapes]

    lists = [params(), params()]
    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 0.3, "stats": True}
    optimizers = [
        optim.Adam(lists[0], **options),
        optim.CPUOffload(lists[1], optim.Adam, free_gradients=free, **options),
    ]
    for step in range(3):
        for own, optimizer in zip(lists, optimizers, strict=True):
            optimizer.zero_grad()
            sum((param * (1 + step)).abs().square().sum() for param in own).backward()
            optimizer.step()
        engine.assert_same(engine.snapshot(optimizers[1]), engine.snapshot(optimizers[0]), step)


@BOTH
def test_schedulers(free: bool, recwarn: pytest.WarningsRecorder) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    schedulers = [lr_scheduler.OneCycleLR(o, 0.1, total_steps=9) for _, o in pair.both]
    rates = set()
    for step in range(4):
        pair.train(1)
        rates.add(pair.offloaded.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
        for _, optimizer in pair.both:
            optimizer.param_groups[0]["l1"] = 0.1 * step
    assert len(rates) == 4
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


@BOTH
def test_options_that_come_and_go(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    for change in (
        lambda group: group.update(positive=True),
        lambda group: group.pop("positive"),
        lambda group: group.update(betas=(0.5, 0.9), l1=0.0, mcp=0.2),
        lambda group: group.pop("mcp"),
    ):
        for _, optimizer in pair.both:
            change(optimizer.param_groups[1])
        pair.train(2)


@BOTH
def test_closures(free: bool) -> None:
    pair = Pair(free=free, **cases.STRENGTHS)
    for step in range(3):
        losses = []
        for model, optimizer in pair.both:

            def closure(model: nn.Module = model, optimizer: Any = optimizer, step: int = step) -> Tensor:
                optimizer.zero_grad()
                loss = model(data(step, torch.float32)).square().mean()
                loss.backward()
                return loss

            losses.append(optimizer.step(closure))
        assert torch.equal(*losses)
        pair.assert_same(step)


@BOTH
def test_steps_that_are_left_out(free: bool) -> None:
    """Also the first one, which creates no states; the weights on the device are not touched."""
    pair = Pair(free=free, skip_nonfinite=True, **cases.STRENGTHS)
    for step, scale in enumerate((float("inf"), 1.0, float("nan"), 1.0)):
        pair.zero_grad()
        pair.backward(step, scale=scale)
        version = pair.models[1].first.weight._version
        pair.step(step)
        assert (pair.models[1].first.weight._version == version) == (scale != 1.0)
        assert bool(vars(pair.offloaded)["state"]) == (step > 0)


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_grad_scaler(amp_scaling: bool) -> None:
    """A scale that overflows once; its own path, and the one that hands the scale to the step."""
    pair = Pair(amp_scaling=amp_scaling, max_grad_norm=0.1, **cases.STRENGTHS)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2) for _ in pair.both]
    for step in range(5):
        for (model, optimizer), scaler in zip(pair.both, scalers, strict=True):
            optimizer.zero_grad()
            loss = model(data(step, torch.float32)).square().mean() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        pair.assert_same(step)
    assert pair.offloaded.state[pair.models[1].scale]["step"] == 4


def test_weights_of_l1() -> None:
    def groups(model: nn.Module) -> Any:
        return [{"params": [p], "l1_weights": [some_weights(p.detach())]} for p in model.parameters()]

    pair = Pair(free=True, groups=groups, **cases.STRENGTHS)
    pair.train(2)
    for _, optimizer in pair.both:
        optimizer.param_groups[0]["l1_weights"][0].fill_(3.0)
        optimizer.param_groups[2]["l1_weights"] = [some_weights(optimizer.param_groups[2]["params"][0]) * 2]
    pair.train(2)


# --- saved, copied, left ---


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_dicts_both_ways(free: bool, dtype: torch.dtype) -> None:
    pair = Pair(free=free, dtype=dtype, **cases.STRENGTHS)
    pair.train(2)
    saved = copy.deepcopy(pair.offloaded.state_dict())
    assert all(type(key) is int for key in saved["state"])
    pair.plain.load_state_dict(saved)
    pair.train(2)
    pair.offloaded.load_state_dict(copy.deepcopy(pair.plain.state_dict()))
    pair.train(2)
    assert saved.keys() == pair.plain.state_dict().keys()
    assert saved["param_groups"][0].keys() == pair.plain.state_dict()["param_groups"][0].keys()


def test_state_dicts_of_torch() -> None:
    pair = Pair(lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(list(pair.models[0].parameters()), lr=0.01, weight_decay=0.1)
    ours = optim.CPUOffload(list(pair.models[1].parameters()), lr=0.5)
    for step in range(4):
        if step == 2:
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
            pair.models[1].load_state_dict(pair.models[0].state_dict())
        pair.backward(step)
        theirs.step()
        ours.step()
        for optimizer in (theirs, ours):
            optimizer.zero_grad()
    assert ours.param_groups[0]["lr"] == 0.01
    for mine, other in zip(pair.models[1].parameters(), pair.models[0].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[pair.models[0].scale]["step"] == 4


def test_hooks_of_state_dicts_and_steps() -> None:
    pair = Pair(**cases.STRENGTHS)
    called = []
    pair.offloaded.register_state_dict_post_hook(lambda o, d: called.append("saved") or {**d, "more": 1})
    pair.offloaded.register_load_state_dict_pre_hook(
        lambda o, d: called.append("before") or {k: v for k, v in d.items() if k != "more"}
    )
    pair.offloaded.register_load_state_dict_post_hook(lambda o: called.append("after"))
    pair.offloaded.register_step_pre_hook(lambda o, a, k: called.append("step"))
    pair.train(1)
    saved = pair.offloaded.state_dict()
    assert saved["more"] == 1
    pair.offloaded.load_state_dict(saved)
    assert called == ["step", "saved", "before", "after"]
    pair.train(1)


@pytest.mark.parametrize("what", ["a tensor", "a count", "nothing left", "another dictionary"])
def test_states_that_are_exchanged_are_used(what: str) -> None:
    pair = Pair(**cases.STRENGTHS)
    pair.train(2)
    for model, optimizer in pair.both:
        if what == "a tensor":
            optimizer.state[model.first.weight]["exp_avg"] = torch.full((5, 5), 0.5)
        elif what == "a count":
            optimizer.state[model.scale]["step"].fill_(9)
        elif what == "nothing left":
            del optimizer.state[model.transposed]
        else:
            own = copy.deepcopy(list(vars(optimizer)["state"].values()))
            optimizer.state = dict(zip(vars(optimizer)["state"], own, strict=True))
            own[0]["exp_avg"].fill_(0.5)
    pair.train(2)
    assert pair.offloaded.state[pair.models[1].scale]["step"] == (11 if what == "a count" else 4)


@BOTH
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str, free: bool) -> None:
    pair = Pair(free=free, max_grad_norm=0.1, skip_nonfinite=True, **cases.STRENGTHS)
    pair.train(2)
    whole = (pair.models[1], pair.offloaded)
    pair.models[1], pair.offloaded = copy.deepcopy(whole) if how == "deepcopy" else pickle.loads(pickle.dumps(whole))
    assert pair.offloaded._free == free
    pair.train(2)


def test_of_two_the_latest_takes_the_gradients_and_one_that_is_gone_takes_none() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    first = optim.CPUOffload(pair.models[0].parameters(), free_gradients=True)
    second = optim.CPUOffload(pair.models[0].parameters(), free_gradients=True)
    before = copy.deepcopy(pair.models[0].state_dict())
    pair.backward(0)
    first.step()
    assert all(torch.equal(value, before[name]) for name, value in pair.models[0].state_dict().items())
    second.step()
    assert not torch.equal(pair.models[0].scale, before["scale"])
    gone = [weakref.ref(first), weakref.ref(second)]
    del first, second
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    pair.backward(0)
    assert pair.models[0].scale.grad is not None


def test_everything_but_weights_is_in_memory_of_the_optimizer() -> None:
    pair = Pair(free=True, **cases.STRENGTHS)
    pair.train(2)
    saved = [t for state in pair.offloaded.state.values() for t in state.values()]
    weights = {p.untyped_storage().data_ptr() for p in pair.models[1].parameters()}
    assert not weights & {t.untyped_storage().data_ptr() for t in saved}
