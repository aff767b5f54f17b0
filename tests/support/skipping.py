"""Trainings in which a step is left out, beside those that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import regkernels
from tests.support import cases, engine

SHAPES = ((5, 7), (33,), (), (2, 3, 4, 5), (1025,))
STRENGTHS = {"lr": 0.0123, "l1": 0.037, "weight_decay": 0.21}
BFLOAT16 = torch.bfloat16


class Kind(NamedTuple):
    """What is trained, and how. ``layout``: of weights; gradients are always contiguous."""

    rule: str
    dtype: torch.dtype = torch.float32
    layout: Callable[[Tensor], Tensor] = Tensor.clone
    options: dict[str, Any] = {}  # noqa: RUF012
    flat: bool = False


RULES = {rule: Kind(rule) for rule in cases.RULES}
FORMATS = {
    f"{rule}, {precision}": Kind(rule, BFLOAT16, options=precision.options)
    for rule, precision in zip(
        ("dampening", "adamw", "sgd", "lion", "radam", "rmsprop_both", "momentum"), cases.PRECISIONS, strict=True
    )
}
KINDS = {
    **RULES,
    **FORMATS,
    "float64": Kind("dampening", torch.float64),
    "radam, float64": Kind("radam", torch.float64, options={"eps": 1e-3}),
    "float16": Kind("adagrad", torch.float16),
    "complex": Kind("rmsprop_centered", torch.complex64, options={"l1": 0.0}),
    "staged": Kind("dampening", layout=cases.LAYOUTS["every_other"]),
    "staged halves": Kind(
        "lion", BFLOAT16, cases.LAYOUTS["every_other"], FORMATS["lion, nearest and bfloat16 states"].options
    ),
    "gradients of another layout": Kind("amsgrad", layout=cases.LAYOUTS["transposed"]),
    "flat": Kind("dampening", flat=True),
    "flat halves": Kind("adamw", BFLOAT16, options={"param_rounding": "remainder"}, flat=True),
}


class Training:
    """Parameters in two groups, and an optimizer of them."""

    def __init__(
        self,
        kind: Kind,
        device: torch.device | str = "cpu",
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        **options: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(shape, generator=generator, dtype=kind.dtype) for shape in shapes]
        self.kind = kind
        self.params = [nn.Parameter(kind.layout(value).to(device)) for value in values]
        groups: list[dict[str, Any]] = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.05}]
        self.flat = regkernels.FlatParameters(groups) if kind.flat else None
        self.optimizer = engine.make(kind.rule, groups, **{**STRENGTHS, **kind.options, **options})

    def give(self, number: int, bad: float | None = None, scale: float = 1.0) -> None:
        """The gradients of a step, in fresh memory or in that of a `FlatParameters`; ``bad``: one element of them."""
        generator = torch.Generator().manual_seed(100 + number)
        for param in self.params:
            grad = torch.randn(param.shape, generator=generator, dtype=param.dtype).to(param.device) * scale
            if self.flat is not None and param.grad is not None:
                param.grad.copy_(grad)
            else:
                param.grad = grad
        if bad is not None:
            self.bad.grad.view(-1)[-1] = bad

    @property
    def bad(self) -> Tensor:
        """Whose gradient has the bad element."""
        return self.params[-2]

    def step(self, number: int, bad: float | None = None) -> None:
        self.give(number, bad)
        self.optimizer.step()

    @property
    def states(self) -> dict[str, Tensor]:
        """States and counts by parameter and name, without a look at `optimizer.state`, which would end the trust in it."""
        held = vars(self.optimizer)["state"]
        return {
            f"{index}: {name}": value
            for index, param in enumerate(self.params)
            for name, value in (held.get(param) or {}).items()
        }

    def everything(self) -> dict[str, Tensor]:
        """The tensors that a step may write."""
        weights = {f"{index}: weight": param.detach() for index, param in enumerate(self.params)}
        return {**weights, **self.states}

    def pinned(self) -> dict[str, tuple[int, int]]:
        """Where they are, and how often each was written."""
        tensors = {**self.everything(), **{f"{i}: parameter": param for i, param in enumerate(self.params)}}
        return {name: (tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()}


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], note: object = "") -> None:
    """In every bit, of those that are expected."""
    assert got.keys() >= expected.keys(), note
    for name, tensor in expected.items():
        engine.assert_same_bits(got[name].detach().cpu(), tensor.detach().cpu(), f"{note}: {name}")
