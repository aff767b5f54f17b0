"""Specifies every operation of the package in plain eager PyTorch.

The C++ and the Triton kernels perform the same IEEE operations in the same order, so their weights and states equal
these bit for bit. That is why the lines below avoid what rounds differently from backend to backend:

- no ``lerp``, ``addcmul``, ``addcdiv``, no ``alpha=``: they may contract to a fused multiply-add;
- no ``scalar / tensor`` and no ``tensor / scalar``: torch may compute a reciprocal and multiply;
- `square_root` instead of ``torch.sqrt``, which is an ulp off for some values on CPU.

Sums are not part of the bit promise; they are formed in float64 and agree to 1e-6 (in practice 1e-14).
"""

from regkernels.reference import family as family
from regkernels.reference import kinds as kinds
from regkernels.reference.elementwise import clamp, divide, logarithm, sign, soft_threshold
from regkernels.reference.family import OPERATORS, VALUES
from regkernels.reference.groups import zero_groups
from regkernels.reference.l1_l2 import (
    elastic_net_penalty,
    l1_penalty,
    l2_penalty,
    penalty_dtype,
    penalty_gradient,
    penalty_value,
    sums,
)
from regkernels.reference.metrics import METRICS, Metric, proximal_
from regkernels.reference.rounding import join, philox, random_bits, round_stochastically, split, widen
from regkernels.reference.rules import RULES, Rule
from regkernels.reference.slopes import group_slope, slope
from regkernels.reference.step import penalise, update_
from regkernels.reference.values import (
    Penalty,
    check_refused,
    folded_concave_penalty,
    group_factors,
    group_gradient,
    group_norms,
    penalty,
    scaled_total,
    value_gradient,
    value_sum,
    weighted_gradient,
    weighted_sum,
)
from regkernels.table.formats import compute_dtype
from regkernels.table.root import square_root

__all__ = [
    "METRICS",
    "OPERATORS",
    "RULES",
    "VALUES",
    "Metric",
    "Penalty",
    "Rule",
    "check_refused",
    "clamp",
    "compute_dtype",
    "divide",
    "elastic_net_penalty",
    "folded_concave_penalty",
    "group_factors",
    "group_gradient",
    "group_norms",
    "group_slope",
    "join",
    "l1_penalty",
    "l2_penalty",
    "logarithm",
    "penalise",
    "penalty",
    "penalty_dtype",
    "penalty_gradient",
    "penalty_value",
    "philox",
    "proximal_",
    "random_bits",
    "round_stochastically",
    "scaled_total",
    "sign",
    "slope",
    "soft_threshold",
    "split",
    "square_root",
    "sums",
    "update_",
    "value_gradient",
    "value_sum",
    "weighted_gradient",
    "weighted_sum",
    "widen",
    "zero_groups",
]
