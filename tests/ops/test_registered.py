"""The registered operators, by torch's own checks and under ``torch.compile(fullgraph=True)``.

"aot_eager" traces and functionalises as "inductor" does without generating code, which takes most of the time; what
generated code could break (buffers reused in place) is tested with "inductor".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import elastic_net_penalty, l1_penalty, l2_penalty
from regkernels.prox import soft_threshold, soft_threshold_

pytestmark = pytest.mark.usefixtures("fresh_compiler")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda b: b,
    "transposed": lambda b: b.t(),
    "sliced": lambda b: b[:, ::2],
    "0-dim": lambda b: b[0, 0],
    "empty": lambda b: b[:0],
}
PENALTIES: dict[str, Callable[[Any], Tensor]] = {
    "l1": lambda params: l1_penalty(params, 0.1),
    "l2": lambda params: l2_penalty(params, 0.2),
    "elastic net": lambda params: elastic_net_penalty(params, 0.1, 0.2),
}

# Loading inductor for the first time warns about torch's own modules.
in_generated_code = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")


def sample(layout: str, dtype: torch.dtype, requires_grad: bool) -> Tensor:
    return LAYOUTS[layout](torch.randn(4, 6).to(dtype)).detach().requires_grad_(requires_grad)


def counted(backend: str) -> CompileCounterWithBackend:
    """A backend that counts the graphs it is asked for."""
    return CompileCounterWithBackend(backend)


# --- the operators ---

PARAMS = [
    [sample("contiguous", torch.float32, True)],
    [sample(layout, torch.float64, True) for layout in LAYOUTS],
    [sample("contiguous", dtype, True) for dtype in reversed(DTYPES)],
    [sample("contiguous", torch.bfloat16, True)],
    [sample("transposed", torch.float32, True), sample("sliced", torch.float32, False)],
    [sample("contiguous", torch.float32, False)],
]


def test_the_operators_are_those_tested_here() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("regkernels::")}
    assert names == {
        f"regkernels::{name}"
        for name in (
            *("penalty", "penalty_gradient", "proximal", "soft_threshold", "soft_threshold_"),
            # tests/ops/test_values.py
            *("penalty_value", "penalty_slope", "weighted_l1", "weighted_l1_gradient", "group_l1", "group_l1_gradient"),
        )
    }


@pytest.mark.parametrize("params", PARAMS)
def test_opcheck_penalty(params: list[Tensor]) -> None:
    torch.library.opcheck(torch.ops.regkernels.penalty.default, (params, 0.1, 0.2))


@pytest.mark.parametrize("params", PARAMS)
def test_opcheck_penalty_gradient(params: list[Tensor]) -> None:
    upstream = torch.tensor(2.0, requires_grad=params[0].requires_grad)
    torch.library.opcheck(torch.ops.regkernels.penalty_gradient.default, (upstream, params, 0.1, 0.2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_soft_threshold(layout: str, dtype: torch.dtype) -> None:
    for x in (sample(layout, dtype, True), sample(layout, dtype, False)):
        torch.library.opcheck(torch.ops.regkernels.soft_threshold.default, (x, 0.3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_soft_threshold_in_place(layout: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.regkernels.soft_threshold_.default, (sample(layout, dtype, False), 0.3))


# --- a loss ---


class Net(nn.Module):
    """With tied, frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(self.frozen(self.first(x))))


def loss_and_gradients(function: Callable[..., Tensor], model: nn.Module, *args: Any) -> list[Tensor]:
    model.zero_grad()
    loss = function(model, *args)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("passed", ["module", "list"])
@pytest.mark.parametrize("name", PENALTIES)
def test_loss_forward_and_backward(name: str, passed: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean() + PENALTIES[name](model if passed == "module" else list(model.parameters()))

    model, backend = Net(), counted("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for batch in (3, 5, 7):
        x = torch.randn(batch, 4)
        actual, expected = loss_and_gradients(compiled, model, x), loss_and_gradients(loss, model, x)
        assert len(actual) == 5  # the loss, and the gradients of first (2), tied.bias, unused
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert backend.frame_count <= 2  # the first shape, then all others


@in_generated_code
def test_loss_in_generated_code() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        penalties = elastic_net_penalty(model, 0.1, 0.2) * 3 + l1_penalty([model.first.weight * 2, x], 0.1)
        return model(x).square().mean() + penalties

    model = Net()
    compiled = torch.compile(loss, fullgraph=True)
    for batch in (3, 5):
        x = torch.randn(batch, 4)
        actual, expected = loss_and_gradients(compiled, model, x), loss_and_gradients(loss, model, x)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PENALTIES)
def test_dynamic_shapes(name: str, dtype: torch.dtype) -> None:
    backend = counted("aot_eager")
    compiled = torch.compile(PENALTIES[name], fullgraph=True, dynamic=True, backend=backend)
    for size in (5, 7, 11):
        ours, theirs = (torch.linspace(-1, 1, 3 * size).view(3, size).to(dtype).requires_grad_() for _ in range(2))
        value, expected = compiled([ours, ours.t() * 2]), PENALTIES[name]([theirs, theirs.t() * 2])
        assert value.dtype == expected.dtype and torch.equal(value, expected)
        value.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert backend.frame_count == 1


@pytest.mark.parametrize("name", PENALTIES)
def test_a_strength_that_changes_does_not_break_the_graph(name: str) -> None:
    """A float that is scheduled: from its second value on, the compiler traces it as a symbol."""
    functions = {"l1": l1_penalty, "l2": l2_penalty, "elastic net": lambda w, s: elastic_net_penalty(w, s, 0.5 * s)}
    compiled = torch.compile(functions[name], fullgraph=True, backend="aot_eager")
    w = torch.randn(6, requires_grad=True)
    for strength in (0.1, 0.2, 0.3, 0.0):
        torch.testing.assert_close(compiled(w, strength), functions[name](w, strength))


def test_a_tensor_strength_that_changes_compiles_once() -> None:
    backend = counted("aot_eager")
    compiled = torch.compile(elastic_net_penalty, fullgraph=True, backend=backend)
    w = torch.randn(6, requires_grad=True)
    for step in range(10):
        strengths = torch.tensor(0.1 * step), torch.tensor(0.3)
        torch.testing.assert_close(compiled(w, *strengths), elastic_net_penalty(w, *strengths))
    assert backend.frame_count == 1


def test_tensor_strengths_get_gradients() -> None:
    compiled = torch.compile(elastic_net_penalty, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, elastic_net_penalty):
        inputs = [torch.linspace(-1, 1, 8), torch.tensor(0.3), torch.tensor(0.7)]
        inputs = [x.requires_grad_() for x in inputs]
        value = function(*inputs)
        value.backward()
        results.append([value.detach(), *(x.grad for x in inputs)])
    torch.testing.assert_close(*results)


def test_a_parameter_listed_twice_counts_once() -> None:
    w = nn.Parameter(torch.ones(3))
    compiled = torch.compile(lambda w: l1_penalty([w, w], 1.0), fullgraph=True, backend="aot_eager")
    assert l1_penalty([w, w], 1.0).item() == 3
    assert compiled(w).item() == 3


# --- the soft-threshold ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_soft_threshold(layout: str) -> None:
    compiled = torch.compile(lambda x: soft_threshold(x * 1, 0.3) + x, fullgraph=True, backend="aot_eager")
    ours = sample(layout, torch.float32, True)
    theirs = ours.detach().clone().requires_grad_()
    actual, expected = compiled(ours), soft_threshold(theirs * 1, 0.3) + theirs
    assert torch.equal(actual, expected) and actual.stride() == expected.stride()
    actual.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_a_threshold_that_changes_does_not_break_the_graph() -> None:
    x = torch.randn(20)
    compiled = torch.compile(soft_threshold, fullgraph=True, backend="aot_eager")
    in_place = torch.compile(lambda x, t: soft_threshold_(x.clone(), t), fullgraph=True, backend="aot_eager")
    for threshold in (0.1, 0.2, 0.3, 0.4):
        assert torch.equal(compiled(x, threshold), soft_threshold(x, threshold))
        assert torch.equal(in_place(x, threshold), soft_threshold(x, threshold))


def proximal_step(w: Tensor, g: Tensor) -> Tensor:
    with torch.no_grad():
        w.sub_(0.1 * g)
        return soft_threshold_(w, 0.3).abs().sum()


def clone_then_mutate(x: Tensor, g: Tensor) -> Tensor:
    before = x.clone()  # must not be optimised away: what follows changes x
    soft_threshold_(x, 0.3)
    return x + before * g


def mutate_the_clone(x: Tensor, g: Tensor) -> Tensor:
    other = x.clone()
    soft_threshold_(other, 0.3)
    soft_threshold_(other, 0.3)
    return x + other * g


def mutate_a_view(x: Tensor, g: Tensor) -> Tensor:
    soft_threshold_(x[1:3], 0.3)
    soft_threshold_(x.t()[::2], 0.1)
    return x * g


def mutate_an_intermediate(x: Tensor, g: Tensor) -> Tensor:
    y = x * g
    z = y + 1
    soft_threshold_(y, 0.3)
    return y + z


MUTATIONS = [proximal_step, clone_then_mutate, mutate_the_clone, mutate_a_view, mutate_an_intermediate]


@pytest.mark.parametrize("function", MUTATIONS)
def test_soft_threshold_in_place(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for rows in (4, 6, 9):
        ours = torch.randn(rows, 5)
        theirs, g = ours.clone(), torch.randn(rows, 5)
        torch.testing.assert_close(compiled(ours, g), function(theirs, g))
        assert torch.equal(ours, theirs)


@in_generated_code
def test_soft_threshold_in_place_in_generated_code() -> None:
    def everything(tensors: list[Tensor], g: Tensor) -> list[Tensor]:
        return [function(x, g) for function, x in zip(MUTATIONS, tensors, strict=True)]

    compiled = torch.compile(everything, fullgraph=True)
    ours = [torch.randn(6, 5) for _ in MUTATIONS]
    theirs, g = [x.clone() for x in ours], torch.randn(6, 5)
    torch.testing.assert_close(compiled(ours, g), everything(theirs, g))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
