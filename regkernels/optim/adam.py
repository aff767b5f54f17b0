"""Makes Adam with exact L1 and L2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import Tensor

from regkernels import validation
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.options import Common
from regkernels.optim.step.protocol import Row
from regkernels.table.hyper import Number, averages, regularisation, square_root
from regkernels.validation import L1Mode, WeightDecayMode


class Adam(Optimizer):
    """torch.optim.Adam with L1 and L2 regularisation in the same pass over memory.

    Adam divides each element's step by the root of its second moment: element i moves by ``s_i * m_hat_i`` with
    ``s_i = lr / (sqrt(v_hat_i) + eps)``. The proximal operator in that metric has the threshold ``l1 * s_i``. With it
    (``l1_mode="prox"``) and ``weight_decay_mode`` "coupled" or "prox", the fixed point minimises
    ``f(w) + l1 * sum |w| + weight_decay / 2 * sum w**2``, and the zeros of that minimiser are exact zeros.

    Args:
        params: parameters, or dicts of parameters and options, or (name, parameter) pairs, as in torch. They are updated
            in place: float64, float32, float16 or bfloat16, any shape and strides; complex where ``l1`` is 0.
        lr: step size, >= 0; a float or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1). The states ``exp_avg`` and ``exp_avg_sq`` have
            the parameter's shape and are float32 for half-precision parameters; ``step`` is a 0-dim tensor, on the CPU
            without ``capturable``.
        eps: added to the root of the second moment, >= 0.
        weight_decay: >= 0, with the factor 1/2: ``weight_decay / 2 * sum w**2``, so ``weight_decay = 2 * l2`` of
            `regkernels.l2_penalty`.
        amsgrad: divides by the root of the running maximum (state ``max_exp_avg_sq``).
        maximize: maximises the objective; the penalties are never flipped.
        foreach, fused: accepted for torch's sake and ignored; there is one implementation.
        capturable: keeps the step counts on the device, so that a step can be captured into a CUDA graph. A replay sees the
            values that ``lr``, ``l1``, ``weight_decay`` and ``betas`` have then where they are tensors on the device; floats
            are constants of the graph. Needs parameters on an accelerator.
        differentiable: True is refused.
        decoupled_weight_decay: True is ``weight_decay_mode="decoupled"``.
        l1: strength of the L1 penalty, >= 0, in units of the loss.
        l1_mode: "prox" as above; "decoupled" thresholds every element by ``lr * l1``, which shrinks elements alike but
            is no lasso; "subgradient" adds ``l1 * sign(w)`` to the gradient, as a penalty in the loss does, without zeros.
        weight_decay_mode: "coupled" adds ``weight_decay * w`` to the gradient; "decoupled" multiplies ``w`` by
            ``1 - lr * weight_decay`` before the step, as AdamW does (no fixed objective), "cautious" only where the step does
            not work against the weight's sign; "prox" divides by ``1 + s_i * weight_decay`` after it. None: torch's own,
            coupled for Adam and decoupled for AdamW.
        common: ``max_grad_norm``, ``stats``, ``skip_nonfinite``, ``amp_scaling``, ``param_rounding``, ``state_dtype`` and
            ``seed``, as `regkernels.optim.Common` says, and further penalties and constraints (``mcp``, ``group_l1``,
            ``positive``, ...), as `regkernels.optim.Penalties` does.

    Raises:
        ValueError, TypeError: for a value outside of what is allowed, naming it, before anything is changed.

    Sources: torch.optim.Adam; Kingma and Ba (2015); Reddi et al. (2018) for amsgrad; Loshchilov and Hutter (2019) for
    decoupled decay; Duchi, Hazan and Singer (2011), section 5, for the proximal step in an adaptive metric.
    """

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": weight_decay_mode == "decoupled",
            "l1": l1,
            "l1_mode": l1_mode,
            "weight_decay_mode": weight_decay_mode,
        }
        super().__init__(params, defaults, common)

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        validation.nonnegative("eps", group["eps"], where)
        validation.betas(group["betas"], where, wait=wait)

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        betas = averages(group)
        return {
            **regularisation(group, gain=1.0, step_per_element=True),
            **betas,
            "inverse_bias1": 1.0 / (1.0 - betas["beta1"] ** row.step),
            "inverse_sqrt_bias2": 1.0 / square_root(1.0 - betas["beta2"] ** row.step),
            "eps": float(group["eps"]),
        }
