"""Makes Lion with L1 and decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from regkernels import validation
from regkernels.optim import penalty_keys
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.protocol import Row
from regkernels.table.hyper import Number, averages, regularisation
from regkernels.validation import L1Mode, WeightDecayMode


class Lion(Optimizer):
    """Lion: every element moves by lr along the sign of an average of its gradients.

    A sign has no metric in which a proximal operator could be exact, so the mode "prox" is refused. "decoupled" thresholds
    every element by ``lr * l1`` after the step: weights become exactly zero where the sign of the average changes often
    enough, but the fixed point minimises no objective that could be written down. As every element moves by lr, an ``l1``
    above 1 keeps all weights at 0.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; not complex.
        lr: step size, >= 0; a float or a tensor of one element. Three to ten times smaller than AdamW's.
        betas: of the average that the sign is taken of, and of the state ``exp_avg``, each in [0, 1). The state has the
            parameter's shape and is float32 for half-precision parameters.
        weight_decay: >= 0; ``w`` is multiplied by ``1 - lr * weight_decay`` before the step.
        maximize: maximises the objective; the penalties are never flipped.
        foreach, fused: accepted for torch's sake and ignored; there is one implementation.
        differentiable: True is refused.
        l1: strength of the L1 penalty, >= 0.
        l1_mode: "decoupled" as above; "subgradient" adds ``l1 * sign(w)`` to the gradient, as a penalty in the loss does.
        weight_decay_mode: "decoupled" (None: this one), "cautious", the same only where the step does not work against the
            weight's sign, or "coupled", which adds ``weight_decay * w`` to the gradient.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Source: Chen et al., Symbolic discovery of optimization algorithms (2023), algorithm 2.
    """

    _counts_steps = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "decoupled",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": "decoupled" if weight_decay_mode is None else weight_decay_mode,
        }
        super().__init__(params, defaults, common)

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        validation.betas(group["betas"], where, wait=wait)
        for name in ("l1_mode", "weight_decay_mode"):
            if group[name] == "prox":
                raise ValueError(
                    f'{name}="prox" is not possible with Lion{where}: its steps are signs, which have no metric; choose '
                    '"decoupled"'
                )
        for name in penalty_keys.needs_metric(group):
            raise ValueError(
                f"{name} is not possible with Lion{where}: its steps are signs, which have no metric to shrink in; choose l1 "
                'with l1_mode="decoupled", or another optimizer'
            )

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "lion"

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        betas = averages(group)
        return {
            **regularisation(group, gain=1.0, step_per_element=False),
            **betas,
        }
