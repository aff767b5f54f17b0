"""Penalties of whole tensors, from what each rank holds of them.

Elements that are cut over ranks are summed over these, replicated ones count once; every rank gets the same bits. All sums of a call
travel in one message per group of ranks, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from regkernels import reference
from regkernels.distributed.autograd import Groups, own, shared, summed
from regkernels.distributed.shards import cut_over, held, is_dtensor, is_spread_alike, kind, words
from regkernels.dynamo import outside_of_graphs

Call = tuple[Callable[..., Tensor], tuple[Any, ...]]
"""A function of tensors (and factors) whose values add up, and what else it takes."""


class Share(NamedTuple):
    """Tensors that are cut over the same ranks."""

    over: Groups
    """Empty: all ranks hold all of it."""
    listed: list[int]
    chosen: list[int]
    """Those of ``listed`` that count: what one rank takes for memory listed before, another may hold nothing of."""


def check_parameter(tensor: Tensor, name: str) -> None:
    """Raises for a `DTensor` that has no penalty."""
    if not is_dtensor(tensor):
        return
    if any(placement.is_partial() for placement in tensor.placements):  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} is a DTensor with placements {words(tensor)}: a sum that has yet to be formed, of which no rank knows "
            f"an element; pass {name}.redistribute(placements=...) with Replicate() or Shard() in the place of Partial()"
        )
    if tensor.device_mesh.get_coordinate() is None:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} is a DTensor on {tensor.device_mesh}, which this rank {distributed.get_rank()} is "  # type: ignore[attr-defined]
            "no part of; leave it out on this rank"
        )


def strength(name: str, value: Any) -> Any:
    """A strength as a plain number or tensor."""
    if not is_dtensor(value):
        return value
    if not all(placement.is_replicate() for placement in value.placements):
        raise ValueError(
            f"{name} is a DTensor with placements {words(value)}, of which not every rank has the value; pass "
            f"{name}.full_tensor()"
        )
    return own([value])[0]


def check_weight(weight: Any, param: Any, name: str, of: str) -> None:
    """Raises where the weights of elements, called ``name``, are not where the elements are, called ``of``."""
    if not isinstance(weight, Tensor) or is_spread_alike(weight, param):
        return
    if not is_dtensor(param):
        raise ValueError(
            f"{name} is a DTensor with placements {words(weight)}, and {of} a plain tensor. FSDP gathers parameters from the forward "
            "pass on: make the list list(model.parameters()) before the first one and pass that as params. Otherwise pass "
            f"{name}.full_tensor()"
        )
    raise ValueError(
        f"{name} is {kind(weight)}, and {of} a DTensor with placements {words(param)}: pass one that is spread like it, made by "
        "distribute_tensor(weights, param.device_mesh, param.placements) of torch.distributed.tensor, or computed from it"
    )


def shares(listed: Sequence[Tensor], chosen: Sequence[int]) -> list[Share]:
    """All tensors by the ranks they are cut over. The same on all ranks, but for what is chosen."""
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
    """``compute`` of each share, a float64 vector, summed over the ranks of that share.

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
    """The value of each call for all ``chosen`` tensors of ``listed``, of which some are `DTensor`s: 0-dim each."""
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
