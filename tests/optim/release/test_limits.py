"""Steps in the backward pass: gradients that live only as long as they are needed, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import regkernels
from regkernels import FlatParameters, optim
from regkernels.optim.step.plan import Plan
from tests import ROOT

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


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm=1.0 .* norm of all gradients"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 .* norm of all gradients"),
        ({"skip_nonfinite": True}, "skip_nonfinite=True .* gradients are finite"),
        ({"amp_scaling": True}, "amp_scaling=True .* overflowed"),
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
    release = optim.step_in_backward(optim.SGD(model.parameters(), lr=0.1))
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(model, checkpoint(model, x, use_reentrant=True), use_reentrant=True).sum().backward()
    assert torch.equal(model.weight, before)
    release.remove()


def test_a_weight_that_the_backward_still_needs() -> None:
    """autograd notices, as it does with every change of a tensor that it has saved."""
    model = nn.Linear(2, 2, bias=False)
    release = optim.step_in_backward(optim.SGD(model.parameters(), lr=0.1), bucket_bytes=0)
    x = torch.ones(1, 2, requires_grad=True)
    loss = (model(x) * 1).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    release.remove()


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
    text = (ROOT / "docs" / "gradient_release.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks

    loader = [(torch.randn(5, 4), torch.randint(2, (5,))) for _ in range(4)]
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    names = {"rk": regkernels, "model": model, "criterion": nn.functional.cross_entropy, "loader": loader}
    for block in blocks:
        before = model[0].weight.detach().clone()
        exec(block, names)
        assert not torch.equal(model[0].weight, before) and model[0].weight.grad is None
