"""Lists who computes the elastic net penalty ``l1 * sum |w| + l2 * sum w**2`` (no 1/2), differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from benchmarks.peers.compiling import compiled

Penalty = Callable[[Sequence[Tensor], float, float], Tensor]
Terms = Callable[[Sequence[Tensor], float, float], tuple[Tensor, Tensor | None, Tensor | None]]


def terms(params: Sequence[Tensor], l1: float, l2: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes the penalty as everybody writes it, and the sums that it consists of."""
    absolute = sum((p.abs().sum() for p in params[1:]), start=params[0].abs().sum()) if l1 else None
    square = sum(((p * p).sum() for p in params[1:]), start=(params[0] * params[0]).sum()) if l2 else None
    if absolute is None:
        assert square is not None, "a penalty has an l1 or an l2"
        return l2 * square, None, square
    penalty = l1 * absolute if square is None else l1 * absolute + l2 * square
    return penalty, absolute, square


def eager(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    return terms(params, l1, l2)[0]


def own(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    import regkernels

    return regkernels.elastic_net_penalty(params, l1, l2)


PENALTIES: dict[str, Penalty] = {"torch eager": eager, "torch compiled": compiled(eager), "regkernels": own}
