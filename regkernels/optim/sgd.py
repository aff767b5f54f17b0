"""Makes SGD with exact L1 and L2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from regkernels import validation
from regkernels.optim import penalty_keys
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.protocol import Row
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Number, regularisation, select
from regkernels.validation import L1Mode, WeightDecayMode


class SGD(Optimizer):
    """torch.optim.SGD with L1 and L2 regularisation in the same pass over memory.

    With the default ``l1_mode="prox"`` and ``weight_decay_mode`` "coupled" or "prox", the fixed point minimises
    ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2``, and the zeros of that minimiser are exact zeros.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; complex where ``l1`` is 0.
        lr: step size, >= 0; a float or a tensor of one element.
        momentum: factor of the buffer, >= 0. The state ``momentum_buffer`` has the parameter's shape and is float32 for
            half-precision parameters.
        dampening: ``buffer = momentum * buffer + (1 - dampening) * g``; the first step sets ``buffer = g``.
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``, so ``weight_decay = 2 * l2`` of
            `regkernels.l2_penalty`.
        nesterov: steps along ``g + momentum * buffer``; needs momentum > 0 and no dampening.
        maximize: maximises the objective; the penalties are never flipped.
        foreach, fused: accepted for torch's sake and ignored; there is one implementation.
        differentiable: True is refused.
        l1: strength of the L1 penalty, >= 0, in units of the loss.
        l1_mode: "prox" solves the problem above, threshold ``lr * c * l1`` with the steady-state gain
            ``c = (1 - dampening) / (1 - momentum)``; "decoupled" thresholds by ``lr * l1``, which solves the problem with
            ``l1 / c``; "subgradient" adds ``l1 * sign(w)`` to the gradient, as a penalty in the loss does, without zeros.
        weight_decay_mode: "coupled" adds ``weight_decay * w`` to the gradient (None: this one, torch's); "decoupled"
            multiplies ``w`` by ``1 - lr * weight_decay`` before the step, "cautious" only where the step does not work
            against the weight's sign; "prox" divides by ``1 + lr * c * weight_decay`` after it.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Sources: torch.optim.SGD; Sutskever et al. (2013) for momentum; Parikh and Boyd, Proximal Algorithms (2014), section
    4.2 for proximal gradient steps.
    """

    _counts_steps = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "prox",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": "coupled" if weight_decay_mode is None else weight_decay_mode,
        }
        super().__init__(params, defaults, common)

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        momentum = validation.nonnegative("momentum", group["momentum"], where)
        dampening = validation.finite("dampening", group["dampening"], where)
        if group["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening = 0, got momentum {momentum} and "
                f"dampening {dampening}{where}"
            )
        penalty_keys.check_gain(group, momentum, dampening, where)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "momentum" if group["momentum"] != 0 else "sgd"

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        if momentum == 0:
            return regularisation(group, gain=1.0, step_per_element=False)
        gain = (1.0 - dampening) / (1.0 - momentum) if momentum < 1 else 1.0
        return {
            **regularisation(group, gain=gain, step_per_element=False),
            "momentum": momentum,
            "one_minus_dampening": _one_minus(dampening, row),
            "nesterov": float(group["nesterov"]),
        }


def _one_minus(dampening: float, row: Row) -> Number:
    """Returns 1 - dampening, but 1 in a parameter's first step, whose buffer is the gradient."""
    is_first = Deferred("is_equal", row.step, 1.0) if isinstance(row.step, Deferred) else row.first
    return select(is_first, 1.0, 1.0 - dampening)
