"""What training loops, schedulers and frameworks rely on in an optimizer, beyond the arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from regkernels import backends
from regkernels.backends import extension
from tests.support.training import (
    OPTIMIZERS,
    assert_near,
    backward,
    each_optimizer,
    network,
    ours,
    states,
    theirs,
    train,
    twins,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

REGULARISED = {"l1": 1e-4, "l1_mode": "prox", "weight_decay_mode": "prox"}


@each_optimizer
def test_closure(name: str) -> None:
    """Evaluated once, first, with gradients enabled; used again in each step, as those for LBFGS are."""
    model, other = twins(network())
    a, b = ours(name, model.parameters()), theirs(name, other.parameters())
    calls = []

    def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            calls.append(model[0].weight.detach().clone())
            optimizer.zero_grad()
            return backward(model, len(calls) // 2)

        return closure

    for optimizer, net in ((a, model), (b, other)):
        calls.clear()
        closure = closure_of(optimizer, net)
        with torch.no_grad():
            losses = [optimizer.step(closure), optimizer.step(closure=closure)]
        closure()  # evaluated by the user, too
        optimizer.step(closure)
        assert len(calls) == 4
        assert all(isinstance(loss, Tensor) and loss.requires_grad for loss in losses)
    assert_near(model, other)
    assert a.step(lambda: "anything") == "anything"
    assert a.step() is None and a.step(None) is None and a.step(closure=None) is None


@each_optimizer
def test_hooks_and_profile(name: str) -> None:
    model = network()
    optimizer = ours(name, model.parameters())
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    everywhere = register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append("global"))
    with torch.autograd.profiler.profile() as profile:
        train(optimizer, model, range(2))
    everywhere.remove()
    assert sorted(seen) == ["after"] * 2 + ["before"] * 2 + ["global"] * 2 and seen[0] == seen[3] == "before"
    kind = OPTIMIZERS[name][0]
    events = {event.key: event.count for event in profile.key_averages()}
    assert events[f"Optimizer.step#{kind}.step"] == events[f"Optimizer.zero_grad#{kind}.zero_grad"] == 2
    replaced = optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: "replaced"), {}))
    assert optimizer.step() == "replaced"
    replaced.remove()


def test_a_thread_of_its_own_uses_torchs_number_of_threads_and_gives_the_same_bits() -> None:
    results, counts = [], []
    weight, gradient = torch.randn(500_003), torch.randn(500_003)
    # The sums of the reference are torch's, whose order depends on the number of threads.
    sums = {"stats": True, "max_grad_norm": 1.0} if backends.name() == "cpp" else {}
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        p = nn.Parameter(weight.clone())
        p.grad = gradient
        optimizer = ours("adamw", [p], **REGULARISED, **sums)
        optimizer.step()

        def work(optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()  # the first that this thread hears of torch
            if extension.C is not None:
                counts.append(extension.C.num_threads())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        results.append(torch.cat([p.detach().double(), *map(torch.atleast_1d, getattr(optimizer, "stats", []))]))
    assert all(torch.equal(results[0], result) for result in results)
    assert counts in ([], [1, 2, 3, 1])


def test_autograd_notices_that_weights_have_changed() -> None:
    model = network()
    optimizer = ours("adam", model.parameters())
    loss = (model(torch.ones(1, 5, dtype=torch.float64)) ** 2).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_optimizer
def test_gradient_accumulation(name: str) -> None:
    model, other = twins(network())
    for optimizer, net in ((ours(name, model.parameters()), model), (theirs(name, other.parameters()), other)):
        for step in range(4):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            backward(net, step)
            backward(net, step + 10)
            optimizer.step()
    assert_near(model, other)


@each_optimizer
def test_optimizer_in_backward(name: str) -> None:
    """One optimizer per parameter, stepped by a hook as soon as the gradient is there, and the gradient freed."""
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizers = {param: make(name, [param]) for param in net.parameters()}

        def step(param: Tensor, optimizers: dict[Tensor, torch.optim.Optimizer] = optimizers) -> None:
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in net.parameters():
            param.register_post_accumulate_grad_hook(step)
        for k in range(3):
            backward(net, k)
        assert all(param.grad is None for param in net.parameters())
    assert_near(model, other)


@pytest.mark.parametrize("strided", [False, True])
@each_optimizer
def test_gradients_that_come_late_or_stay_away(name: str, strided: bool) -> None:
    """None is skipped: no decay, no step count, no state; bias corrections are counted per parameter."""
    model, other = twins(network())
    for param in [*model.parameters(), *other.parameters()] if strided else []:
        param.data = torch.stack([param.data, param.data], dim=-1)[..., 0]
    a, b = ours(name, model.parameters()), theirs(name, other.parameters())
    absent = {0: [0], 1: [0, 3], 2: [], 3: [1, 2], 4: [0, 1, 2, 3], 5: [], 6: [2]}
    for step, missing in absent.items():
        for optimizer, net in ((a, model), (b, other)):
            optimizer.zero_grad()
            backward(net, step)
            for index in missing:
                list(net.parameters())[index].grad = None
            optimizer.step()
        assert_near(model, other)
        assert {k: s.keys() for k, s in states(a).items()} == {k: s.keys() for k, s in states(b).items()}


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    model = network()
    optimizer = ours("adam", model[0].parameters())
    backward(model)
    kept = model[2].weight.grad.clone()
    optimizer.zero_grad(set_to_none)
    for param in model[0].parameters():
        assert param.grad is None if set_to_none else (param.grad == 0).all()
    assert torch.equal(model[2].weight.grad, kept)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_default_device_changes_nothing(backend: str) -> None:
    """torch.set_default_device is for the tensors that a user makes."""
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        model = network()
        optimizer = ours("adamw", model.parameters(), l1=1e-3, stats=True, max_grad_norm=1.0)
        for step in range(3):
            optimizer.zero_grad()
            backward(model, step)
            with backends.use(backend), torch.device(device):
                optimizer.step()
                found.append(optimizer.stats.l1_norm)
                optimizer.load_state_dict(optimizer.state_dict())
        found += weights(model)
    half = len(found) // 2
    assert all(torch.equal(a, b) for a, b in zip(found[:half], found[half:], strict=True))
