"""Computes penalties of whole tensors, from what each rank holds of them.

Elements that are cut over ranks are summed over these, replicated ones count once; every rank gets the same bits. All sums of a call
travel in one message per group of ranks, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import reference
from regkernels.distributed.autograd import ProcessGroups, own, shared, summed
from regkernels.distributed.shards import cut_over, held
from regkernels.dynamo import outside_of_graphs

Call = tuple[Callable[..., Tensor], tuple[Any, ...]]
"""A function of tensors (and factors) whose values add up, and what else it takes."""


class Share(NamedTuple):
    """Holds tensors that are cut over the same ranks."""

    over: ProcessGroups
    """Empty: all ranks hold all of it."""
    listed: list[int]
    chosen: list[int]
    """Those of ``listed`` that count: what one rank takes for memory listed before, another may hold nothing of."""


def shares(listed: Sequence[Tensor], chosen: Sequence[int]) -> list[Share]:
    """Sorts all tensors by the ranks they are cut over. The same on all ranks, but for what is chosen."""
    found: dict[tuple[str, ...], Share] = {}
    counted = set(chosen)
    for index, tensor in enumerate(listed):
        over = cut_over(tensor)
        share = found.setdefault(tuple(over), Share(over, [], []))
        share.listed.append(index)
        if index in counted:
            share.chosen.append(index)
    return list(found.values())


def over_ranks(
    found: Sequence[Share], lengths: Sequence[int], compute: Callable[[Share], Tensor], device: Any
) -> list[Tensor]:
    """Sums ``compute`` of each share, a float64 vector, over the ranks of that share.

    Where it raises on one rank only, all ranks raise, as the others would wait for it (on the CPU; elsewhere nobody looks).
    """
    everyone = {name: group for share in found for name, group in share.over.items()}
    failure: Exception | None = None
    try:
        vectors = [compute(share) for share in found]
    except Exception as error:
        if device.type != "cpu" or not everyone:
            raise
        failure = error
        vectors = [torch.zeros(length, dtype=torch.float64) for length in lengths]
    failed = torch.full((1,), float(failure is not None), dtype=torch.float64, device=device)
    *totals, failures = summed([*vectors, failed], [*(share.over for share in found), everyone])
    if failure is not None:
        raise failure
    if device.type == "cpu" and failures.item():
        raise ValueError(f"the penalty could not be computed on {failures.item():.0f} other rank(s), which say why")
    return totals


@outside_of_graphs
def evaluated(
    calls: Sequence[Call], listed: Sequence[Tensor], chosen: Sequence[int], factors: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Computes the value of each call for all ``chosen`` tensors of ``listed``, of which some are `DTensor`s: 0-dim each."""
    found = shares(listed, chosen)
    parts = own(listed, watch=True)
    device = parts[0].device
    # What functions sum in float64 they round to the widest type of their tensors. It is to be rounded once, at the end.
    wide = torch.empty(0, dtype=torch.float64, device=device)

    def compute(share: Share) -> Tensor:
        columns = [[*(parts[index] for index in share.chosen), wide]]
        if factors is not None:
            columns.append([*(held(factors[index]) for index in share.chosen), wide])
        values = []
        for function, options in calls:
            known = [shared(option, share.over) if isinstance(option, Tensor) else option for option in options]
            values.append(function(*columns, *known))
        return torch.stack(values)

    totals = over_ranks(found, [len(calls)] * len(found), compute, device)
    return list(sum(totals[1:], totals[0]).to(reference.penalty_dtype(listed)).unbind())
