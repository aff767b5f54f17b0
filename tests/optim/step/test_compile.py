"""``torch.compile`` of whole training steps: the optimizer is called between graphs, as it is, and gives its eager bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics
from torch.optim import lr_scheduler

import regkernels
from regkernels import FlatParameters, elastic_net_penalty, l1_penalty, optim
from tests.support import engine
from tests.support.training import OPTIMIZERS, ours

pytestmark = pytest.mark.usefixtures("fresh_compiler")

STEPS = 5


class Training:
    """A model, its optimizer and what a user might do in one function."""

    def __init__(self, name: str, *, dtype: torch.dtype = torch.float32, flat: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
        if flat:
            FlatParameters(self.model)
        groups = regkernels.param_groups(self.model, l1=1e-3, weight_decay=1e-2)
        self.optimizer = ours(name, groups, **options)
        self.dtype = dtype

    def data(self, step: int) -> Tensor:
        return torch.sin(torch.arange(12.0).view(3, 4) + step).to(self.dtype)

    def loss(self, x: Tensor) -> Tensor:
        return self.model(x).square().mean() + elastic_net_penalty(self.model, 1e-3, 1e-3)

    def whole(self, x: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(x)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def step_first(self, x: Tensor) -> Tensor:
        loss = self.loss(x)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def closure(self, x: Tensor) -> Tensor:
        def evaluate() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.loss(x)
            loss.backward()
            return loss

        return self.optimizer.step(evaluate).detach()

    def logging(self, x: Tensor) -> Tensor:
        loss = self.whole(x)
        stats = self.optimizer.stats
        return torch.stack([loss, stats.nonzeros.sum(), stats.l1_norm.sum(), stats.grad_norm])

    def compares(self, x: Tensor) -> Tensor:
        """What was copied before a step must not be what it is afterwards."""
        before = [param.detach().clone() for param in self.model.parameters()]
        loss = self.whole(x)
        moved = [(param - old).abs().sum() for param, old in zip(self.model.parameters(), before, strict=True)]
        return torch.stack([loss, *moved]).detach()


def run(
    training: Training, call: Callable[[Tensor], Any], schedule: Callable[[Training, int], Any] | None = None
) -> list[Any]:
    """What the calls returned. From the third on, nothing may be compiled any more."""
    results = []
    for step in range(STEPS):
        with torch._dynamo.config.patch(error_on_recompile=step > 1):
            results.append(call(training.data(step)))
        if step == 1:
            clear_compilation_metrics()
        if schedule is not None:
            schedule(training, step)
    assert not get_compilation_metrics()
    return results


def assert_same(a: Training, b: Training) -> None:
    """Weights, states and sums."""
    engine.assert_same(engine.snapshot(a.optimizer), engine.snapshot(b.optimizer))


def traced_files() -> list[Path]:
    return [Path(metrics.co_filename) for metrics in get_compilation_metrics() if metrics.co_filename]


def set_lr(training: Training, step: int) -> None:
    for group in training.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(0.01 / (step + 1))
        else:
            group["lr"] = 0.01 / (step + 1)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stats and clipping": {"stats": True, "max_grad_norm": 0.1},
    "tensor lr, flat": {"lr": torch.tensor(0.02), "flat": True},
    "low precision": {"dtype": torch.bfloat16, "param_rounding": "stochastic", "skip_nonfinite": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.interpreted if name == "adamw" else ()) for name in OPTIMIZERS]
)
def test_a_whole_step(name: str, case: str) -> None:
    eager, compiled = (Training(name, **copy.deepcopy(CASES[case])) for _ in range(2))
    expected = run(eager, eager.whole, set_lr)
    actual = run(compiled, torch.compile(compiled.whole, backend="aot_eager"), set_lr)
    assert all(map(torch.equal, actual, expected))
    assert_same(compiled, eager)


@pytest.mark.parametrize("way", ["step_first", "closure", "logging", "compares"])
def test_other_orders(way: str) -> None:
    eager, compiled = (Training("adamw", stats=True) for _ in range(2))
    expected = run(eager, getattr(eager, way))
    actual = run(compiled, torch.compile(getattr(compiled, way), backend="aot_eager"))
    assert all(map(torch.equal, actual, expected))
    assert_same(compiled, eager)


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_schedulers(name: str, tensor_lr: bool) -> None:
    """Torch's schedulers wrap ``step`` of the optimizer that they are given."""
    results = []
    for is_compiled in (False, True):
        training = Training(name, lr=torch.tensor(0.02) if tensor_lr else 0.02)
        scheduler = lr_scheduler.ExponentialLR(training.optimizer, 0.5)
        call = torch.compile(training.whole, backend="aot_eager") if is_compiled else training.whole
        results.append((run(training, call, lambda *_, s=scheduler: s.step()), training))
    assert all(map(torch.equal, results[0][0], results[1][0]))
    assert_same(results[1][1], results[0][1])


def test_a_scheduler_within() -> None:
    results = []
    for is_compiled in (False, True):
        training = Training("momentum", stats=True)
        scheduler = lr_scheduler.ExponentialLR(training.optimizer, 0.5)

        def scheduled(x: Tensor, training: Training = training, scheduler: Any = scheduler) -> Tensor:
            loss = training.whole(x)
            scheduler.step()
            return loss

        results.append(
            (run(training, torch.compile(scheduled, backend="aot_eager") if is_compiled else scheduled), training)
        )
    assert all(map(torch.equal, results[0][0], results[1][0]))
    assert results[1][1].optimizer.param_groups[0]["lr"] == 0.05 * 0.5**STEPS
    assert_same(results[1][1], results[0][1])


def test_what_cannot_be_compiled_says_why() -> None:
    training = Training("adam")
    x = training.data(0)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="memory addresses"):
        torch.compile(lambda: training.optimizer.step(), fullgraph=True, backend="aot_eager")()

    def assigns(x: Tensor) -> None:
        training.optimizer.param_groups[0]["lr"] = 0.5
        training.whole(x)

    training.whole(x)
    with pytest.raises(ValueError, match=r"torch\.compile sets it when .* assigns to optimizer\.param_groups"):
        torch.compile(assigns, backend="aot_eager")(x)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_the_step(name: str, wrapped: bool) -> None:
    eager, compiled = (Training(name, stats=True) for _ in range(2))
    optimizer = compiled.optimizer
    step = torch.compile((lambda: optimizer.step()) if wrapped else optimizer.step, backend="aot_eager")

    def train(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = compiled.loss(x)
        loss.backward()
        step()
        return loss.detach()

    assert all(map(torch.equal, run(compiled, train), run(eager, eager.whole)))
    assert_same(compiled, eager)


@pytest.mark.interpreted
@pytest.mark.parametrize("way", ["whole", "closure", "logging"])
def test_the_compiler_never_enters_the_package(way: str) -> None:
    """Neither the step nor what launches kernels, whatever calls it: what depends on addresses would be wrong, and slow."""
    training = Training("adam", stats=True, max_grad_norm=1.0)
    call = torch.compile(getattr(training, way), backend="aot_eager")
    for step in range(2):
        call(training.data(step))
        training.optimizer.param_groups[0]["lr"] = 0.01
    files = traced_files()
    package = Path(regkernels.__file__).parent
    assert Path(__file__) in files
    assert not [file for file in files if package in file.parents]
    assert not [file for file in files if file.parts[-2:] == ("optim", "optimizer.py")]


@pytest.mark.interpreted
def test_operators_called_between_graphs_are_not_entered() -> None:
    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        penalty = torch._dynamo.disable(l1_penalty, recursive=False)(x, 0.5)
        penalty.backward()
        return penalty.detach() + x.grad.sum()

    x = torch.linspace(-1, 2, 7).requires_grad_()
    expected = 0.5 * x.detach().abs().sum() + 0.5 * x.detach().sign().sum()
    torch.testing.assert_close(torch.compile(breaks, backend="aot_eager")(x), expected)
    package = Path(regkernels.__file__).parent
    assert not [file for file in traced_files() if package / "backends" in file.parents or file.name == "ops.py"]


def test_several_optimizers_and_a_second_instance() -> None:
    """Nothing is specialised to the optimizer that was there first."""

    def step(model: nn.Module, optimizers: list[torch.optim.Optimizer], x: Tensor) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    compiled = torch.compile(step, backend="aot_eager")
    for _ in range(2):
        models = [nn.Linear(4, 3) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        for model, function in zip(models, (step, compiled), strict=True):
            optimizers = [optim.SGD([model.weight], momentum=0.9, l1=0.1), optim.Adam([model.bias])]
            for number in range(3):
                function(model, optimizers, torch.full((2, 4), float(number)))
        assert torch.equal(models[0].weight, models[1].weight) and torch.equal(models[0].bias, models[1].bias)


@pytest.mark.interpreted
def test_a_compiled_model_stepped_in_its_backward() -> None:
    eager, compiled = (Training("adamw", stats=True) for _ in range(2))
    optim.step_in_backward(compiled.optimizer, bucket_bytes=0)
    expected = run(eager, eager.whole)
    actual = run(compiled, torch.compile(compiled.whole, backend="aot_eager"))
    assert all(map(torch.equal, actual, expected))
    assert_same(compiled, eager)


def test_eager_programs_do_not_pay() -> None:
    """``step`` and ``zero_grad`` are plain functions, without the wrapper of torch.compiler.disable."""
    optimizer = Training("sgd").optimizer
    for function in (type(optimizer).step, type(optimizer).zero_grad, type(optimizer).stats.fget):
        assert function._torchdynamo_disable
        assert not hasattr(function, "_torchdynamo_orig_callable")
