"""Makes Adagrad with exact L1 and L2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import UninitializedParameter

from regkernels import transforms, validation
from regkernels.distributed.shards import held
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.counts import count_dtype, side_by_side
from regkernels.optim.step.entry import real
from regkernels.optim.step.protocol import Row
from regkernels.optim.step.states import make
from regkernels.table.hyper import Number, regularisation
from regkernels.validation import L1Mode, WeightDecayMode


class Adagrad(Optimizer):
    """torch.optim.Adagrad with L1 and L2 regularisation in the same pass over memory.

    Element i moves by ``s_i * g_i`` with ``s_i = lr / (sqrt(sum_i) + eps)``. The proximal operator in that metric has the
    threshold ``l1 * s_i``. With it (``l1_mode="prox"``) and ``weight_decay_mode`` "coupled" or "prox", the fixed point
    minimises ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2``, and the zeros of that minimiser are exact zeros.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; complex where ``l1`` is 0.
        lr: step size, >= 0; a float or a tensor of one element.
        lr_decay: in step n, lr is ``lr / (1 + (n - 1) * lr_decay)``, >= 0, also where it multiplies the strengths.
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``.
        initial_accumulator_value: what the state ``sum`` begins with, >= 0. It has the parameter's shape and is float32 for
            half-precision parameters; ``step`` is a 0-dim tensor on the CPU. Both are there from the start, as torch's are; those of
            param groups that are added later, and of lazy parameters, from the first step that sees a gradient.
        eps: added to the root of the sum, >= 0.
        foreach, fused: accepted for torch's sake and ignored; there is one implementation.
        maximize: maximises the objective; the penalties are never flipped.
        differentiable: True is refused.
        l1, l1_mode, weight_decay_mode: as in `regkernels.optim.Adam`; weight decay is coupled by default.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Sources: torch.optim.Adagrad; Duchi, Hazan and Singer (2011), with section 5 for the proximal step.
    """

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "prox",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": "coupled" if weight_decay_mode is None else weight_decay_mode,
        }
        super().__init__(params, defaults, common)
        self._create_states()

    def share_memory(self) -> None:
        """Moves the states to shared memory, as torch's does, and the step counts with them: for processes that train asynchronously."""
        for state in self.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.share_memory_()

    def _create_states(self) -> None:
        """Makes the states of all parameters that are trained and have a shape; of fake ones the first step does."""
        initial = [float(group["initial_accumulator_value"]) for group in self.param_groups]
        params = [
            (param, group)
            for group, options in enumerate(self.param_groups)
            for param in options["params"]
            if validation.is_trained(param) and not isinstance(param, UninitializedParameter)
        ]
        if transforms.is_faking() or any(transforms.is_fake(param) for param, _ in params):
            return
        formats = [self._stepper.options.precision.of(param) for param, _ in params]
        sums = make([(param, own.dtype_of("sum")) for (param, _), own in zip(params, formats, strict=True)])
        steps, self._stepper.count_blocks = side_by_side(
            [(0.0, count_dtype(own)) for own in formats], torch.device("cpu")
        )
        for (param, group), step, tensor in zip(params, steps, sums, strict=True):
            real(held(tensor)).fill_(initial[group])
            self.__dict__["state"][param] = {"step": step, "sum": tensor}

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        for name in ("eps", "lr_decay", "initial_accumulator_value"):
            validation.nonnegative(name, group[name], where)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adagrad"

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        lr_divisor = 1.0 + (row.step - 1) * float(group["lr_decay"])
        return {
            **regularisation(group, gain=1.0, step_per_element=True, lr_divisor=lr_divisor),
            "eps": float(group["eps"]),
        }
