"""Makes RMSprop with exact L1 and L2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from regkernels import validation
from regkernels.optim import penalty_keys
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.protocol import Row
from regkernels.table.hyper import Number, regularisation
from regkernels.validation import L1Mode, WeightDecayMode


class RMSprop(Optimizer):
    """torch.optim.RMSprop with L1 and L2 regularisation in the same pass over memory.

    Element i moves by ``s_i * g_i`` with ``s_i = lr / (sqrt(v_i) + eps)``. The proximal operator in that metric has the
    threshold ``c * l1 * s_i``, with the gain ``c = 1 / (1 - momentum)``. With it (``l1_mode="prox"``) and
    ``weight_decay_mode`` "coupled" or "prox", the fixed point minimises
    ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2``, and the zeros of that minimiser are exact zeros.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; complex where ``l1`` is 0.
        lr: step size, >= 0; a float or a tensor of one element.
        alpha: decay rate of the second moment v, in [0, 1). The state ``square_avg`` has the parameter's shape and is
            float32 for half-precision parameters; ``step`` is a 0-dim tensor, on the CPU without ``capturable``.
        eps: added to the root of the second moment, >= 0.
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``.
        momentum: factor of the buffer of scaled gradients, >= 0 (state ``momentum_buffer``).
        centered: divides by the root of the variance (state ``grad_avg``).
        capturable: as in `regkernels.optim.Adam`.
        foreach: accepted for torch's sake and ignored; there is one implementation.
        maximize: maximises the objective; the penalties are never flipped.
        differentiable: True is refused.
        l1, l1_mode, weight_decay_mode: as in `regkernels.optim.Adam`; weight decay is coupled by default.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Sources: torch.optim.RMSprop; Hinton, Neural networks for machine learning, lecture 6e (2012); Graves (2013), equations
    38 to 42, for ``centered``.
    """

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "prox",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": "coupled" if weight_decay_mode is None else weight_decay_mode,
        }
        super().__init__(params, defaults, common)

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        validation.nonnegative("eps", group["eps"], where)
        validation.decay_rate("alpha", group["alpha"], where)
        momentum = validation.nonnegative("momentum", group["momentum"], where)
        penalty_keys.check_gain(group, momentum, 0.0, where)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "rmsprop" + "_centered" * bool(group["centered"]) + "_momentum" * (group["momentum"] > 0)

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        momentum, alpha = float(group["momentum"]), float(group["alpha"])
        gain = 1.0 / (1.0 - momentum) if momentum < 1 else 1.0
        fields = regularisation(group, gain=gain, step_per_element=True)
        if group["centered"]:  # moves have no limit where the variance vanishes, as it does where training ends
            fields["largest_shrink"] = math.inf
        return {
            **fields,
            "momentum": momentum,
            "beta2": alpha,
            "one_minus_beta2": 1.0 - alpha,
            "eps": float(group["eps"]),
        }
