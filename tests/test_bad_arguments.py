"""Bad arguments of functions and classes beside the optimizers: the error names the argument, its value and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from tests.optim.test_bad_input import GRID, INF, NAN, SPARSE, a_parameter


def _frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


def _pair(first: Any, second: Any) -> list[nn.Parameter]:
    return [nn.Parameter(first), nn.Parameter(second)]


def _embedding() -> nn.Module:
    model = nn.Embedding(3, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    return model


flat, groups, l1 = regkernels.FlatParameters, regkernels.param_groups, regkernels.l1_penalty
l2, net, threshold, threshold_ = (
    regkernels.l2_penalty,
    regkernels.elastic_net_penalty,
    regkernels.prox.soft_threshold,
    regkernels.prox.soft_threshold_,
)
group = regkernels.group_l1_penalty
VALUES = (
    regkernels.l0_penalty,
    regkernels.l_half_penalty,
    regkernels.mcp_penalty,
    regkernels.scad_penalty,
    regkernels.log_sum_penalty,
    regkernels.huber_penalty,
)
INTEGERS = torch.ones(2, dtype=torch.int64)
FUNCTIONS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any, str]] = [
    (flat, ("weight",), {}, TypeError, "module_or_params must be a module, an iterable.*got str"),
    (flat, (3,), {}, TypeError, "module_or_params must be .*got int"),
    (
        flat,
        (a_parameter(2),),
        {},
        TypeError,
        "module_or_params must be .*got Parameter; put a single tensor into a list",
    ),
    (flat, (["weight"],), {}, TypeError, "module_or_params must contain tensors or param groups, got str: 'weight'"),
    (flat, ([],), {}, ValueError, "module_or_params has no trainable parameter"),
    (flat, (_frozen(),), {}, ValueError, "module_or_params has no trainable parameter"),
    (flat, ([{"lr": 0.1}],), {}, (TypeError, ValueError), "params"),
    (flat, ([a_parameter(2) * 2],), {}, ValueError, r"tensor 0 of shape \(2,\) is not a leaf.*pass model.parameters"),
    (flat, ([SPARSE],), {}, TypeError, "tensor 0 of shape .* layout torch.sparse_coo"),
    (flat, (_embedding(),), {}, RuntimeError, "gradient of tensor 0 .*sparse_coo.*pass sparse=False"),
    (flat, (_pair(GRID, GRID),), {}, ValueError, "tensor 0 and tensor 1 share memory.*one Parameter object"),
    (flat, (_pair(GRID[:4], GRID[3:]),), {}, ValueError, "tensor 0 and tensor 1 share memory"),
    (flat, (_pair(GRID[:, ::2], GRID[7]),), {}, ValueError, "share memory"),
    (flat, (nn.Linear(2, 2, device="meta"),), {}, (RuntimeError, ValueError, TypeError), "meta"),
    (groups, (list(nn.Linear(2, 2).parameters()),), {}, TypeError, r"model must be a torch\.nn\.Module, got list"),
    (groups, (nn.Linear(2, 2),), {"l1": -1.0}, ValueError, "l1 must be >= 0, got -1.0"),
    (groups, (nn.Linear(2, 2),), {"weight_decay": NAN}, ValueError, "weight_decay must be finite, got nan"),
    (groups, (nn.Linear(2, 2),), {"l1": "0.1"}, TypeError, "l1 must be a number, got '0.1'"),
    (groups, (nn.Linear(2, 2),), {"params": []}, (TypeError, ValueError), "params"),
    (groups, (_frozen(),), {}, ValueError, "model has no trainable parameter"),
    (groups, (nn.Tanh(),), {}, ValueError, "model has no trainable parameter"),
    *(
        (f, ([], *s), {}, ValueError, "params is empty: pass at least one tensor")
        for f, s in ((l1, [1.0]), (net, [1.0, 1.0]))
    ),
    (l1, (iter(()), 1.0), {}, ValueError, "exhausted generator"),
    (l1, ("weight", 1.0), {}, TypeError, "params must be a tensor, an iterable of tensors or a module, got str"),
    (l1, (None, 1.0), {}, TypeError, "params must be .*got NoneType"),
    (l1, (_frozen(), 1.0), {}, ValueError, "the module has no trainable parameter"),
    (l1, ([a_parameter(2), "b"], 1.0), {}, TypeError, r"params\[1\] must be a tensor, got str: 'b'"),
    (l1, ([a_parameter(2), INTEGERS], 1.0), {}, TypeError, r"params\[1\] has dtype torch.int64; allowed are float64"),
    (l1, (torch.ones(2, dtype=torch.complex64), 1.0), {}, TypeError, r"params\[0\] has dtype torch.complex64; allowed"),
    (l2, (SPARSE, 1.0), {}, TypeError, r"params\[0\] has layout torch.sparse_coo.*dense"),
    (
        l2,
        ([a_parameter(2), torch.ones(2, device="meta")], 1.0),
        {},
        ValueError,
        r"params\[1\] is on meta, params\[0\] on cpu",
    ),
    (l1, (a_parameter(2), -1.0), {}, ValueError, "strength must be >= 0, got -1.0"),
    (l2, (a_parameter(2), NAN), {}, ValueError, "strength must be finite, got nan"),
    (l2, (a_parameter(2), "1"), {}, TypeError, "strength must be a number, got '1'"),
    (net, (a_parameter(2), -1.0, 1.0), {}, ValueError, "l1 must be >= 0, got -1.0"),
    (net, (a_parameter(2), 1.0, INF), {}, ValueError, "l2 must be finite, got inf"),
    (net, (a_parameter(2), torch.ones(2), 1.0), {}, ValueError, r"l1 must be a number or .* shape \(2,\)"),
    *((f, ([], 1.0), {}, ValueError, "params is empty: pass at least one tensor") for f in (*VALUES, group)),
    *((f, (a_parameter(2), -1.0), {}, ValueError, "strength must be >= 0, got -1.0") for f in (*VALUES, group)),
    *((f, (INTEGERS, 1.0), {}, TypeError, r"params\[0\] has dtype torch.int64; allowed") for f in (*VALUES, group)),
    (
        regkernels.mcp_penalty,
        (a_parameter(2), 1.0),
        {"gamma": 0.0},
        ValueError,
        "gamma must be greater than 0, got 0.0",
    ),
    (regkernels.mcp_penalty, (a_parameter(2), 1.0), {"gamma": NAN}, ValueError, "gamma must be finite, got nan"),
    (regkernels.scad_penalty, (a_parameter(2), 1.0), {"a": 1}, ValueError, "a must be greater than 1, got 1"),
    (
        regkernels.log_sum_penalty,
        (a_parameter(2), 1.0),
        {"eps": 0.0},
        ValueError,
        "eps must be at least 1.18e-38, .* got 0.0",
    ),
    (regkernels.huber_penalty, (a_parameter(2), 1.0), {"delta": -1.0}, ValueError, "delta must be at least 1.18e-38"),
    (regkernels.huber_penalty, (a_parameter(2), 1.0), {"delta": "1"}, TypeError, "delta must be a number, got '1'"),
    (
        l1,
        (a_parameter(2), 1.0, [torch.ones(2)] * 2),
        {},
        ValueError,
        "weights has 2 tensors, params has 1: pass one for",
    ),
    (l1, (a_parameter(2), 1.0, [1.0]), {}, TypeError, r"weights\[0\] must be a tensor, got float: 1.0"),
    (l1, (a_parameter(2), 1.0, INTEGERS), {}, TypeError, r"weights\[0\] must be a dense float64.*torch.int64"),
    (
        l1,
        (a_parameter(2), 1.0, torch.ones(3)),
        {},
        ValueError,
        r"weights\[0\] has shape \(3,\).*params\[0\] has shape \(2,\)",
    ),
    (l1, (a_parameter(2), 1.0, a_parameter(2)), {}, ValueError, r"weights\[0\] requires a gradient, .*detach\(\)"),
    (
        group,
        (a_parameter(2), 1.0, 1),
        {},
        ValueError,
        r"dim=1 does not exist in params\[0\] of shape \(2,\): choose from -1 to 0",
    ),
    (group, (nn.Linear(2, 3), 1.0, 1), {}, ValueError, r"dim=1 does not exist in parameter 'bias' of shape \(3,\)"),
    (
        group,
        (nn.Linear(2, 3), 1.0, 0, 2),
        {},
        ValueError,
        r"size=2 does not divide the 3 of dim=0 in parameter 'weight'",
    ),
    (group, (a_parameter(2), 1.0, 0.0), {}, TypeError, "dim must be an integer or 'tensor', got 0.0"),
    (group, (a_parameter(2), 1.0, 0, 0), {}, ValueError, "size must be at least 1, got 0"),
    (
        group,
        (a_parameter(2), 1.0),
        {"weight": "mean"},
        ValueError,
        "weight must be one of 'sqrt_size', 'ones', got 'mean'",
    ),
    (threshold, ([1.0], 0.1), {}, TypeError, "x must be a tensor, got list"),
    (threshold, (INTEGERS, 0.1), {}, TypeError, "x must be a dense float64.*torch.int64"),
    (threshold, (SPARSE, 0.1), {}, TypeError, "x must be a dense .*sparse_coo"),
    (threshold, (torch.ones(2), -0.1), {}, ValueError, "threshold must be >= 0, got -0.1"),
    (threshold, (torch.ones(2), NAN), {}, ValueError, "threshold must be finite, got nan"),
    (threshold_, (a_parameter(2), 0.1), {}, RuntimeError, r"within torch\.no_grad\(\), or use soft_threshold"),
    (threshold_, (torch.ones(1).expand(3), 0.1), {}, ValueError, r"x is expanded.*clone\(\)"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "error", "text"), FUNCTIONS)
def test_functions(function: Any, args: Any, kwargs: Any, error: Any, text: str) -> None:
    given = args[0] if isinstance(args[0], list) else []
    addresses = [tensor.data_ptr() for tensor in given if isinstance(tensor, nn.Parameter)]
    with pytest.raises(error, match=f"(?s){text}"):
        function(*args, **kwargs)
    assert addresses == [tensor.data_ptr() for tensor in given if isinstance(tensor, nn.Parameter)], "nothing was moved"
