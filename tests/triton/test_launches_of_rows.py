"""What a captured step asks of a device, as simulated devices see it: no more for numbers that live there than one launch for all of them.

Nothing is computed here, so any Triton will do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.support import engine
from tests.support.simulated import devices

DEVICE = torch.device("cuda", 0)
STRENGTHS = {"lr": 1e-2, "l1": 1e-3, "weight_decay": 0.1}
CLIPPED = {"max_grad_norm": 0.5, "skip_nonfinite": True, "stats": True}


def operations(rule: str, param_groups: int, *, tensors: bool, **options: Any) -> int:
    """Returns how many a captured step is made of."""
    with devices(1) as simulation:
        groups = []
        for _ in range(param_groups):
            params = [nn.Parameter(torch.zeros(size, device=DEVICE)) for size in (5, 70)]
            strengths: dict[str, Any] = STRENGTHS
            if tensors:
                strengths = {key: torch.full((), value, device=DEVICE) for key, value in STRENGTHS.items()}
            groups.append({"params": params, **strengths})
            for param in params:
                param.grad = torch.zeros_like(param)
        optimizer = engine.make(rule, groups, **options)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), simulation.no_waiting():
            optimizer.step()
        return len(graph.operations)  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, CLIPPED], ids=["plain", "clipped"])
@pytest.mark.parametrize("rule", ["sgd", "dampening", "adamw", "radam", "rmsprop_both"])
def test_a_captured_step_takes_no_operation_per_param_group(rule: str, options: dict[str, Any]) -> None:
    """Beyond what SGD does with numbers: room for what rows are computed from, the rows, and two for counts where a step may be left out."""
    counting = {"capturable": True} if rule not in ("sgd", "dampening") else {}
    most = operations("sgd", 1, tensors=False, **options) + (4 if options else 3)
    for param_groups in (1, 2, 5):
        assert operations(rule, param_groups, tensors=True, **counting, **options) <= most
