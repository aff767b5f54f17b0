"""The operators of the penalties beyond L1 and L2, by torch's own checks and under ``torch.compile(fullgraph=True)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from regkernels import group_l1_penalty, l1_penalty
from tests.support import cases
from tests.support.penalties import PENALTIES

pytestmark = pytest.mark.usefixtures("fresh_compiler")

FUNCTIONS: dict[str, Callable[[Any, Any], Tensor]] = {
    **{name: penalty.ours for name, penalty in PENALTIES.items()},
    "weighted": lambda params, s: l1_penalty(params, s, [2 * torch.ones_like(w) for w in params]),
    "rows": group_l1_penalty,
    "columns": lambda params, s: group_l1_penalty(params, s, dim=1),
    "tensors": lambda params, s: group_l1_penalty(params, s, dim="tensor"),
}
PARAMS = [
    [torch.randn(4, 6).requires_grad_()],
    [torch.randn(4, 6).to(dtype).requires_grad_() for dtype in cases.DTYPES],
    [torch.randn(6, 4).t().requires_grad_(), torch.randn(4, 12)[:, ::2], torch.randn(0, 6).requires_grad_()],
    [torch.randn(4, 6)],
]


@pytest.mark.parametrize("params", PARAMS, ids=["one", "dtypes", "layouts", "frozen"])
@pytest.mark.parametrize(
    ("kind", "shape"), [("l0", 0.0), ("l_half", 0.0), ("scad", 3.7), ("log_sum", 0.5), ("huber", 0.5)]
)
def test_opcheck_elements(kind: str, shape: float, params: list[Tensor]) -> None:
    ops = torch.ops.regkernels
    torch.library.opcheck(ops.penalty_value.default, (params, kind, 0.1, shape))
    upstream = torch.tensor(2.0, requires_grad=params[0].requires_grad)
    torch.library.opcheck(ops.penalty_slope.default, (upstream, params, kind, 0.1, shape))


@pytest.mark.parametrize("params", PARAMS, ids=["one", "dtypes", "layouts", "frozen"])
def test_opcheck_weights_and_groups(params: list[Tensor]) -> None:
    ops = torch.ops.regkernels
    upstream = torch.tensor(2.0, requires_grad=params[0].requires_grad)
    weights = [torch.rand(w.shape) for w in params]
    torch.library.opcheck(ops.weighted_l1.default, (params, weights, 0.1))
    torch.library.opcheck(ops.weighted_l1_gradient.default, (upstream, params, weights, 0.1))
    for dim in (0, 1, None):
        options = (0.1, dim, 1, "sqrt_size")
        _, norms = ops.group_l1(params, *options)
        torch.library.opcheck(ops.group_l1.default, (params, *options))
        torch.library.opcheck(ops.group_l1_gradient.default, (upstream, params, norms, *options))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loss_of_changing_shapes_and_strengths_stays_one_graph(name: str) -> None:
    """A float strength that changes becomes a symbol; a tensor is an input."""
    layer = nn.Linear(3, 4)
    for strengths in ((0.1, 0.2, 0.3), tuple(torch.tensor(s, requires_grad=True) for s in (0.1, 0.2, 0.3))):
        torch._dynamo.reset()
        backend = CompileCounterWithBackend("aot_eager")

        def loss(x: Tensor, s: Any) -> Tensor:
            return layer(x).square().mean() + FUNCTIONS[name]([layer.weight, x.t() @ x], s)

        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        for rows, strength in zip((3, 5, 7), strengths, strict=True):
            x = torch.randn(rows, 3, requires_grad=True)
            inputs = [layer.weight, x, *([strength] if isinstance(strength, Tensor) else [])]
            results = []
            for function in (compiled, loss):
                value = function(x, strength)
                results.append([value.detach(), *torch.autograd.grad(value, inputs)])
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
        assert backend.frame_count <= (2 if isinstance(strengths[0], Tensor) else 4)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_in_generated_code() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))

    def loss(x: Tensor) -> Tensor:
        params = list(model.parameters())
        return model(x).square().mean() + sum(
            (FUNCTIONS[name](params, 0.1) for name in ("scad", "weighted", "columns")), torch.zeros(())
        )

    compiled = torch.compile(loss, fullgraph=True)
    x = torch.randn(5, 3)
    results = []
    for function in (compiled, loss):
        value = function(x)
        results.append([value.detach(), *torch.autograd.grad(value, list(model.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)
