"""How long does a penalty in the loss take? Forward and backward, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import regkernels
from benchmarks import shapes
from benchmarks.optimizer_step import L1, L2, elements
from benchmarks.timing import Case, Contender


def eager_penalty(params: list[nn.Parameter]) -> torch.Tensor:
    penalty = L1 * sum(p.abs().sum() for p in params) + L2 * sum((p * p).sum() for p in params)
    assert isinstance(penalty, torch.Tensor)
    return penalty


def cases() -> Iterator[Case]:
    of = shapes.gpt2_small()
    params = [nn.Parameter(0.02 * torch.randn(shape)) for shape in of]

    def drop_gradients() -> None:
        for param in params:
            param.grad = None

    name = "GPT-2 small, 148 tensors, 124 M"
    with_backward = [
        Contender("eager", lambda: eager_penalty(params).backward(), drop_gradients),
        Contender("regkernels", lambda: regkernels.elastic_net_penalty(params, L1, L2).backward(), drop_gradients),
    ]
    yield Case("elastic net penalty, forward + backward", name, with_backward, 12 * elements(of))
    drop_gradients()
    forward = [
        Contender("eager", torch.no_grad()(lambda: eager_penalty(params))),
        Contender("regkernels", torch.no_grad()(lambda: regkernels.elastic_net_penalty(params, L1, L2))),
    ]
    yield Case("elastic net penalty, forward", name, forward, 4 * elements(of), limit="read")
