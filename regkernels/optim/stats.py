"""Hands out the sums that a step forms on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.distributed.sums import Pending
from regkernels.table.hyper import Scalar
from regkernels.table.segments import SUMS
from regkernels.table.upload import placed


class Stats(NamedTuple):
    """Holds sums formed during a step, on the parameters' device.

    Over the weights that the step updated (parameters whose gradient was None are not among them), after the update:

    - ``l1_norm``: sum of ``|w|``, float64, shape (param groups,)
    - ``squared_norm``: sum of ``w**2``, float64, shape (param groups,)
    - ``nonzeros``: number of ``w != 0``, int64, shape (param groups,)
    - ``zero_groups``: number of groups whose weights are all 0, int64, shape (param groups,); 0 for param groups without a
      penalty or constraint on groups

    and ``grad_norm``: Euclidean norm of all gradients before clipping, without a scaler's scale, float64, 0-dim; NaN and
    Inf are visible in it. A complex weight counts as two real ones. Of parameters that are spread over ranks (DTensors, or
    ``process_group``) they are the sums over the whole parameters, the same on every rank.
    """

    l1_norm: Tensor
    squared_norm: Tensor
    nonzeros: Tensor
    grad_norm: Tensor
    zero_groups: Tensor

    @classmethod
    def of(cls, totals: Sequence[Any], inverse_scale: Scalar, groups: int, device: torch.device) -> Stats:
        """Adds up ``totals``: one table (param groups, sums) per device, or one for all ranks.

        ``inverse_scale`` has yet to be applied to the gradients that they are of. ``groups``: number of param groups.
        """
        total = torch.zeros(groups, len(SUMS), dtype=torch.float64, device=device)
        for of_device in totals:
            table = of_device.get()[: total.numel()] if isinstance(of_device, Pending) else of_device
            total = total + placed(table, device).reshape(total.shape)
        absolute, square, nonzeros, gradient, zero_groups = total.unbind(1)
        norm = gradient.sum().sqrt() * inverse_scale
        return cls(absolute, square, nonzeros.to(torch.int64), norm, zero_groups.to(torch.int64))
