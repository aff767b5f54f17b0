"""A small model whose step gives the same bits wherever it is run: nothing in it but elementwise maps and sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import regkernels
from tests.support import cases, engine

STRENGTHS = {"lr": 0.0123, "l1": 0.037, "weight_decay": 0.21}
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((), (5,), (17, 33), (3, 4, 5), (8193,))
RULES = {name: cases.RULES[name] for name in ("sgd", "nesterov", "adam", "amsgrad", "adamw")}


class Training:
    """Parameters, what pulls at them, and an optimizer whose strengths may be tensors on the device.

    ``tensors``: lr, l1 and weight_decay are 0-dim tensors, else floats.
    """

    def __init__(
        self,
        rule: str,
        device: torch.device,
        *,
        tensors: bool = False,
        seed: int = 0,
        dtypes: Sequence[torch.dtype] = DTYPES,
        **options: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rule, self.device, self.generator = rule, device, generator
        kinds = [(dtype, shape) for dtype in dtypes for shape in SHAPES]
        values = [torch.randn(shape, generator=generator).to(dtype) for dtype, shape in kinds]
        self.params = [nn.Parameter(value.to(device)) for value in values]
        self.targets = [torch.randn(value.shape, generator=generator).to(device) for value in values]
        strengths: dict[str, Any] = dict(STRENGTHS)
        if tensors:
            strengths = {
                name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in STRENGTHS.items()
            }
        name, own = RULES[rule]
        self.strengths = strengths
        self.optimizer = getattr(regkernels.optim, name)(self.params, **own, **strengths, **options)

    def backward(self) -> None:
        """Adds to the gradients those of a loss."""
        total = torch.zeros((), device=self.device)
        for param, target in zip(self.params, self.targets, strict=True):
            total = total + (param.float() - target).square().sum()
        total.backward()

    def whole(self) -> None:
        """A step of training, with gradients in fresh memory."""
        self.optimizer.zero_grad(set_to_none=True)
        self.backward()
        self.optimizer.step()

    def set(self, **values: float) -> None:
        """New strengths, as a scheduler would set them."""
        for name, value in values.items():
            known = self.strengths[name]
            if isinstance(known, Tensor):
                known.fill_(value)
            else:
                self.optimizer.param_groups[0][name] = value

    @property
    def counts(self) -> set[float]:
        """The step counts of all parameters."""
        states = vars(self.optimizer)["state"]  # `optimizer.state` would end the trust in what is there
        return {float(state["step"]) for state in states.values()}

    def outcome(self) -> engine.Outcome:
        return engine.on_cpu(engine.snapshot(self.optimizer))


def assert_same_training(got: Training, expected: Training, note: object = "") -> None:
    """Every bit of weights, states, counts and sums, which one device forms in one order."""
    ours, theirs = got.outcome(), expected.outcome()
    assert ours.keys() == theirs.keys(), note
    for name, tensor in theirs.items():
        engine.assert_same_bits(ours[name], tensor, f"{note}: {name}")
