"""Makes AdamW, which is Adam whose weight decay is decoupled unless another mode is asked for."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from regkernels.optim.adam import Adam
from regkernels.optim.options import Common
from regkernels.validation import L1Mode, WeightDecayMode


class AdamW(Adam):
    """torch.optim.AdamW with L1 regularisation in the same pass over memory.

    The default is AdamW's own decay, ``w * (1 - lr * weight_decay)``. Together with L1 it has no objective that could be
    written down; for an elastic net choose ``weight_decay_mode="prox"`` or "coupled". All else as in
    `regkernels.optim.Adam`, whose docstring explains every argument.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        l1: float | Tensor = 0.0,
        l1_mode: L1Mode = "prox",
        weight_decay_mode: WeightDecayMode | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            l1=l1,
            l1_mode=l1_mode,
            weight_decay_mode="decoupled" if weight_decay_mode is None else weight_decay_mode,
            **common,
        )
