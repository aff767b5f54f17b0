"""Keeps the part of torch's contract that does not depend on who makes the steps: hands out states, keeps steps out of graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regkernels.distributed.agreement import Described
from regkernels.dynamo import keep_step_outside_of_graphs
from regkernels.optim.step.stepper import Stepper


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """Returns what the ``closure`` of a step returns, which is called with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Contract(torch.optim.Optimizer):
    """Stands for an optimizer whose step is made by a `Stepper`, its own or that of another optimizer."""

    _stepper: Stepper
    """What makes the steps."""

    def _described(self) -> Described:
        """Returns what ranks compare of this optimizer; see `regkernels.distributed.check_agreement`."""
        raise NotImplementedError

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """Returns torch's state dictionary, by parameter.

        Whoever reads it may exchange tensors in it, now or later; from then on every step checks that it did not happen.
        """
        if "state" not in self.__dict__:  # a wrapper that passes attributes on
            raise AttributeError("state")
        self._trust_state(False)
        if "_stepper" in self.__dict__:
            self._stepper.finish()
        return self.__dict__["state"]  # type: ignore[no-any-return]

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state dict. Tensors are shared with the optimizer, the dictionaries are not."""
        trusted = self._stepper.trust.holds
        packed = super().state_dict()
        if isinstance(packed.get("state"), dict):  # a hook of the user may have made something else of it
            packed["state"] = {k: dict(v) if isinstance(v, dict) else v for k, v in packed["state"].items()}
            self._stepper.trust.holds = trusted
        self._stepper.trust.lent = True
        return packed

    def _announce_scaling(self) -> None:
        """Lets torch.amp.GradScaler hand over its scale, where that was asked for."""
        if self._stepper.options.amp_scaling:
            self._step_supports_amp_scaling = True  # GradScaler looks for it

    def _trust_state(self, trusted: bool) -> None:
        self._stepper.trust.holds = trusted

    def _patch_step_function(self) -> None:
        """Does what torch does for hooks and profiling, and keeps the step out of graphs after it."""
        super()._patch_step_function()
        keep_step_outside_of_graphs(type(self))
