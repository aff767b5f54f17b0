"""One parameter of a step, as the kernels see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkernels.optim import states as flat_states


@dataclass
class Entry:
    """One parameter that is updated, as real, dense tensors.

    A parameter that is not dense, is complex, or has a gradient of another layout is *staged*: the kernels work on
    contiguous copies, and the weight is copied back after the step.
    """

    param: Tensor
    group: int
    rule: str
    name: str  # for messages
    state: dict[str, Any]  # the optimizer's dictionary of this parameter
    staged: bool
    first: bool = False  # the momentum buffer was created for this step
    weight: Tensor = field(init=False)
    gradient: Tensor | None = None  # the staging buffer
    states: list[Tensor] = field(default_factory=list)  # as they stand in `state`, in the order of the rule

    def __post_init__(self) -> None:
        self.shape, self.dtype = self.param.shape, self.param.dtype
        self.weight = real(self.param.detach())
        if self.staged:
            self.weight = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
            self.gradient = torch.empty_like(self.weight)

    @property
    def tensors(self) -> list[Tensor]:
        """The states as the kernels see them."""
        return [real(tensor) for tensor in self.states]

    def gradient_to_read(self) -> Tensor:
        grad = self.gradient if self.staged else self.param.grad
        assert grad is not None
        return grad

    def load(self) -> None:
        assert self.gradient is not None and self.param.grad is not None
        self.weight.copy_(real(self.param.detach()))
        self.gradient.copy_(real(self.param.grad.detach()))

    def save(self) -> None:
        real(self.param.detach()).copy_(self.weight)

    def changed(self) -> bool:
        return self.param.shape != self.shape or self.param.dtype != self.dtype

    def can_use(self, state: Tensor | None) -> bool:
        """Whether the kernels can use this state where it lies."""
        param = self.param
        if state is None or state.dtype != flat_states.state_dtype(param) or state.device != param.device:
            return False
        if self.staged and not flat_states.is_dense(param):
            return state.shape == param.shape and state.is_contiguous()
        return flat_states.has_layout(state, param)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which is how torch.optim updates it; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
