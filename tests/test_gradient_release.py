"""Steps in the backward pass against steps after it: the same bits, and gradients that live only as long as they are needed."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint

import regkernels
from regkernels import FlatParameters, optim
from regkernels.optim.plan import Plan
from tests import cases, engine


class Net(nn.Module):
    """With a weight used twice, frozen and unused parameters, a transposed one, and branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.first.weight
        self.transposed = nn.Parameter((torch.randn(3, 5) / 4).t())
        self.scale = nn.Parameter(torch.ones(()))
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor, branch: str = "left") -> Tensor:
        hidden = torch.tanh(self.tied(self.frozen(torch.tanh(self.first(x)))))
        return getattr(self, branch)(hidden @ self.transposed * self.scale)


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03, "l1": 0.0}]


def data(step: int, dtype: torch.dtype) -> Tensor:
    return torch.sin(torch.arange(20.0, dtype=torch.float64).view(4, 5) + step).to(dtype)


class Twins:
    """The same training twice: one optimizer steps after the backward, the other within it."""

    def __init__(
        self, make: Callable[[Any], Any], dtype: torch.dtype = torch.float32, bucket_bytes: int = 100, before: int = 0
    ) -> None:
        self.dtype = dtype
        models = [Net().to(dtype)]
        models.append(copy.deepcopy(models[0]))
        self.models = models
        self.after, self.within = (make(groups_of(model)) for model in models)
        for step in range(before):
            for model, optimizer in zip(models, (self.after, self.within), strict=True):
                self.backward(model, step)
                optimizer.step()
                optimizer.zero_grad()
        self.release = optim.step_in_backward(self.within, bucket_bytes=bucket_bytes)

    def backward(self, model: nn.Module, step: int, branch: str = "left") -> None:
        model(data(step, self.dtype), branch).square().mean().backward()

    def train(self, steps: int = 3, branch: Callable[[int], str] = lambda step: "left") -> None:
        for step in range(steps):
            self.after.zero_grad()
            self.backward(self.models[0], step, branch(step))
            self.after.step()
            self.backward(self.models[1], step, branch(step))
            self.assert_same(step)

    def assert_same(self, note: object = "") -> None:
        assert all(param.grad is None for param in self.models[1].parameters())
        engine.assert_same(engine.snapshot(self.within), engine.snapshot(self.after), note)


def adamw(groups: Any, **options: Any) -> optim.Optimizer:
    return optim.AdamW(groups, **{**cases.STRENGTHS, "stats": True, **options})


# --- the same bits ---


@pytest.mark.parametrize("case", cases.MATRIX, ids=str)
def test_every_rule_and_mode(case: cases.Case) -> None:
    Twins(lambda groups: engine.make(case.rule, groups, stats=True, **case.options)).train()


@pytest.mark.parametrize("bucket_bytes", [0, pytest.param(100, marks=pytest.mark.interpreted), 1 << 20])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.FEW, ids=str)
def test_every_dtype_and_bucket(case: cases.Case, dtype: torch.dtype, bucket_bytes: int) -> None:
    Twins(lambda groups: engine.make(case.rule, groups, stats=True, **case.options), dtype, bucket_bytes).train()


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

            def closure(model: nn.Module = model, optimizer: Any = optimizer, step: int = step) -> Tensor:
                optimizer.zero_grad()
                loss = model(data(step, torch.float32)).square().mean()
                loss.backward()
                return loss

            losses.append(optimizer.step(closure))
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


# --- memory and work ---


def deep(layers: int = 12, width: int = 16) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def most_alive(model: nn.Module, backward: Callable[[], None]) -> int:
    """Bytes of gradients that were alive at the same time."""
    storages: list[tuple[StorageWeakRef, int]] = []
    most = 0

    def arrives(gradient: Tensor) -> None:
        nonlocal most
        storages.append((StorageWeakRef(gradient.untyped_storage()), gradient.nbytes))
        most = max(most, sum(size for storage, size in storages if not storage.expired()))

    hooks = [param.register_hook(arrives) for param in model.parameters()]
    backward()
    for hook in hooks:
        hook.remove()
    assert len(storages) == len(hooks)
    return most


@pytest.mark.parametrize(("bucket_bytes", "layers"), [(0, 2), (1024, 2), (3000, 4), (1 << 20, 12)])
def test_gradients_are_freed(bucket_bytes: int, layers: int) -> None:
    """At most those of a bucket and the next one, which is there before its hook is called."""
    model = deep()
    optimizer = optim.AdamW(model.parameters())
    x = torch.ones(2, 16)
    assert most_alive(model, lambda: model(x).sum().backward()) == 12 * 1024
    optimizer.zero_grad()
    release = optim.step_in_backward(optimizer, bucket_bytes=bucket_bytes)
    for _ in range(3):
        assert most_alive(model, lambda: model(x).sum().backward()) <= layers * 1024
    with release.accumulate():
        assert most_alive(model, lambda: model(x).sum().backward()) == 12 * 1024


def test_plans_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a bucket looks at its own parameters only, keeps its plan, and trusts states that nobody was handed."""
    built: list[int] = []
    checks: list[bool] = []
    build, refresh = Plan.build, Plan.refresh

    def counting_build(plan: Plan, **options: Any) -> None:
        built.append(len(plan.entries))
        build(plan, **options)

    def counting_refresh(plan: Plan, *args: Any, **options: Any) -> bool:
        checks.append(options["check_states"])
        return refresh(plan, *args, **options)

    monkeypatch.setattr(Plan, "build", counting_build)
    monkeypatch.setattr(Plan, "refresh", counting_refresh)
    model = deep()
    optimizer = optim.AdamW(model.parameters())
    optim.step_in_backward(optimizer, bucket_bytes=3000)
    for _ in range(3):
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
    assert built == [3] * 4
    assert checks == [False] * 8


def test_a_parameter_that_was_frozen_is_freed_like_others() -> None:
    model = deep()
    x = torch.ones(2, 16)
    model[:11].requires_grad_(False)
    optimizer = optim.AdamW(model.parameters())
    optim.step_in_backward(optimizer, bucket_bytes=0)
    model.requires_grad_(True)
    for most in (12, 2):  # from the second backward on, its gradients have hooks
        assert most_alive(model, lambda: model(x).sum().backward()) <= most * 1024
        assert all(optimizer.state[param]["step"] == (1 if most == 12 else 2) for param in model.parameters())


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


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm=1.0 .* norm of all gradients"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_need_all_gradients(options: dict[str, Any], match: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=match):
        optim.step_in_backward(optim.SGD(model.parameters(), **options))
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_other_arguments_that_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"regkernels\.optim, got SGD"):
        optim.step_in_backward(torch.optim.SGD(model.parameters()))
    optimizer = optim.SGD(model.parameters())
    for value in (-1, 1.5, True):
        with pytest.raises(ValueError, match="bucket_bytes"):
            optim.step_in_backward(optimizer, bucket_bytes=value)
    optim.step_in_backward(optimizer)
    with pytest.raises(ValueError, match="already"):
        optim.step_in_backward(optimizer)


def test_flat_parameters() -> None:
    model, late = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    FlatParameters(late)
    optim.step_in_backward(optimizer)
    with pytest.raises(ValueError, match="parameter 0 of param group 1 belongs to a FlatParameters"):
        optimizer.add_param_group({"params": list(late.parameters())})
    assert len(optimizer.param_groups) == 1
    model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is None
    with pytest.raises(ValueError, match="FlatParameters"):
        optim.step_in_backward(optim.SGD(late.parameters()))


def test_a_backward_within_a_backward() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optim.step_in_backward(optim.SGD(model.parameters(), lr=0.1))
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True).sum().backward()
    assert torch.equal(model.weight, before)


def test_a_weight_that_the_backward_still_needs() -> None:
    """autograd notices, as it does with every change of a tensor that it has saved."""
    model = nn.Linear(2, 2, bias=False)
    optim.step_in_backward(optim.SGD(model.parameters(), lr=0.1), bucket_bytes=0)
    x = torch.ones(1, 2, requires_grad=True)
    loss = (model(x) * 1).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    release = optim.step_in_backward(optimizer)
    before = model.weight.detach().clone()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="2 processes"):
        model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight, before)
    release.remove()
    with pytest.raises(RuntimeError, match="2 processes"):
        optim.step_in_backward(optimizer)


def test_a_gradient_scaler_notices() -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    optim.step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.step(optimizer)


def test_the_example_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "gradient_release.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks

    loader = [(torch.randn(5, 4), torch.randint(2, (5,))) for _ in range(4)]
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    names = {"rk": regkernels, "model": model, "criterion": nn.functional.cross_entropy, "loader": loader}
    for block in blocks:
        before = model[0].weight.detach().clone()
        exec(block, names)
        assert not torch.equal(model[0].weight, before) and model[0].weight.grad is None
