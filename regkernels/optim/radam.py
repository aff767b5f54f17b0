"""Makes RAdam with exact L1 and L2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

from torch import Tensor

from regkernels import validation
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.protocol import Row
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Number, averages, regularisation, select, square_root
from regkernels.validation import L1Mode, WeightDecayMode


class RAdam(Optimizer):
    """torch.optim.RAdam with L1 and L2 regularisation in the same pass over memory.

    In the first steps, as long as the variance of the second moment is unknown, RAdam is momentum with the step ``lr`` for
    every element; then Adam with ``s_i = lr * r / (sqrt(v_hat_i) + eps)``, r growing towards 1. The proximal operator's
    threshold is ``l1`` times that step. With it (``l1_mode="prox"``) and ``weight_decay_mode`` "coupled" or "prox", the
    fixed point minimises ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2``, and the zeros of that minimiser are exact
    zeros. A gradient whose square is infinite makes a weight NaN in those first steps, too, where torch's goes on with the
    first moment.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; complex where ``l1`` is 0.
        lr: step size, >= 0; a float or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1). The states ``exp_avg`` and ``exp_avg_sq`` have
            the parameter's shape and are float32 for half-precision parameters; ``step`` is a 0-dim tensor, on the CPU
            without ``capturable``.
        eps: added to the root of the second moment before it is corrected for its bias, as in torch; >= 0.
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``.
        decoupled_weight_decay: True is ``weight_decay_mode="decoupled"``.
        foreach: accepted for torch's sake and ignored; there is one implementation.
        maximize: maximises the objective; the penalties are never flipped.
        capturable: as in `regkernels.optim.Adam`.
        differentiable: True is refused.
        l1, l1_mode, weight_decay_mode: as in `regkernels.optim.Adam`; weight decay is coupled by default.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Sources: torch.optim.RAdam; Liu et al., On the variance of the adaptive learning rate and beyond (2020), algorithm 2.
    """

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "prox",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        weight_decay_mode = validation.decay_mode(weight_decay_mode, decoupled_weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": weight_decay_mode == "decoupled",
            "differentiable": differentiable,
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": weight_decay_mode,
        }
        super().__init__(params, defaults, common)

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        validation.nonnegative("eps", group["eps"], where)
        validation.betas(group["betas"], where, wait=wait)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "adam"

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        betas = averages(group)
        fields = regularisation(group, gain=1.0, step_per_element=True)
        rectified = rectification(betas["beta2"], row.step, float(group["eps"]))
        return {
            **fields,
            "lr": fields["lr"] * rectified.lr_factor,
            **betas,
            "inverse_bias1": 1.0 / (1.0 - betas["beta1"] ** row.step),
            "inverse_sqrt_bias2": rectified.root_factor,
            "eps": rectified.eps,
            "largest_shrink": select(rectified.known, fields["largest_shrink"], math.inf),
        }


class Rectification(NamedTuple):
    """Holds what makes Adam's formula RAdam's.

    ``known``: whether the variance is; until then all elements have the step lr, whose moves have no limit.
    """

    known: bool | Tensor | Deferred
    lr_factor: Number
    root_factor: Number  # of the second moment
    eps: Number


def rectification(beta2: Number, step: Number, eps: float) -> Rectification:
    """Computes it for step number ``step``."""
    bias2 = 1.0 - beta2**step
    length = 2.0 / (1.0 - beta2) - 1.0
    now = length - 2.0 * step * (1.0 - bias2) / bias2
    known = now > 5.0
    # As long as the variance is unknown the step is lr: the root of the second moment is taken times 0, and 1 is added.
    if isinstance(now, float) and not known:
        return Rectification(known, 1.0, 0.0, 1.0)  # what follows may divide by 0
    variance = (now - 4.0) * (now - 2.0) * length / ((length - 4.0) * (length - 2.0) * now)
    return Rectification(
        known, select(known, square_root(variance * bias2), 1.0), select(known, 1.0, 0.0), select(known, eps, 1.0)
    )
