"""Specifies penalties and constraints of groups of elements: one second moment and one norm for each.

Sums over a group are formed in float64 and in the order of the kernels on CPU, which therefore have the same bits. Those on
a device add in another order: their norms may differ in the last bit of the compute type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from regkernels.reference.elementwise import (
    clamp,
    divide,
    divisor_of,
    in_type_of,
    soft_threshold,
    threshold_of,
    within,
)
from regkernels.table.hyper import Hyper
from regkernels.table.root import square_root

if TYPE_CHECKING:
    from regkernels.table.grouping import GroupLayout

LANES, PIECE, BLOCKS = 16, 65536, 64
"""Of the order of sums, see `group_sums`; kLanes in csrc/sums.h, kPiecesOfRun and kBlocksOfRows in csrc/grouping.h."""


def group_sums(x: Tensor, layout: GroupLayout, like: Tensor) -> Tensor:
    """Returns the sum of each group, float64, shape (groups,). ``x`` has the shape of ``like``, in whose memory the groups lie.

    A group is ``outer`` runs of ``inner`` elements. Runs are cut into pieces of PIECE, and put together in blocks of as many as
    make at most BLOCKS of them. In a block the elements of a piece go to LANES lanes in turn, run after run; lanes, pieces and
    blocks are then added in order.
    """
    outer, groups, inner = layout
    if outer * inner == 0:
        return torch.zeros(groups, dtype=torch.float64, device="cpu")
    rows = -(-outer // BLOCKS)
    blocks = -(-outer // rows)
    length = min(inner, PIECE)
    pieces = -(-inner // length)
    lanes = min(length, LANES)
    steps = -(-length // lanes)
    runs = numpy.zeros((blocks * rows, groups, pieces * length))
    runs[:outer, :, :inner] = _in_memory(x.double(), like).reshape(outer, groups, inner).numpy()
    padded = numpy.zeros((blocks * rows, groups, pieces, steps * lanes))
    padded[..., :length] = runs.reshape(blocks * rows, groups, pieces, length)
    parts = padded.reshape(blocks, rows, groups, pieces, steps, lanes).transpose(0, 3, 2, 1, 4, 5)
    of_lanes = _add_in_order(parts.reshape(blocks * pieces, groups, rows * steps, lanes), axis=2)
    return torch.from_numpy(_add_in_order(_add_in_order(of_lanes, axis=2), axis=0).copy())


def share(v: Tensor, layout: GroupLayout, like: Tensor) -> Tensor:
    """Returns the mean of ``v`` over the group of each element: with it all of a group have the same step.

    Source for one step per group: Zheng and Kwok, Blockwise adaptivity (2019), where it is Adam's second moment.
    """
    return _of_elements(group_sums(v, layout, like) / max(layout.size, 1), v.dtype, layout, like)


class OfNorm(NamedTuple):
    """Holds what in a row of hyper-parameters depends on the size of groups, too, rounded once."""

    strength: float  # of the norm of a group, with its weight
    largest_shrink: float  # the norm of what a proximal step takes from a group at most


class Squares(NamedTuple):
    """Holds sums over groups, in float64: with e what the soft-threshold has taken of z, and x what it has left."""

    left: Tensor  # of x * x
    taken: Tensor  # of e * e
    both: Tensor  # of e * x


class Shrinkage(NamedTuple):
    """Says what the step of a group makes of it: ``(kept * e + factor * x) / divisor``."""

    kept: Tensor
    factor: Tensor
    divisor: Tensor


def group_step(z: Tensor, s: Tensor | float, h: Hyper, of_norm: OfNorm, layout: GroupLayout, like: Tensor) -> Tensor:
    """Makes steps 8 to 11: bounds, soft-threshold, the shrinkage of each group's norm, proximal decay, the limit of all that, and
    what constrains norms.

    ``s`` is the same within a group. In this order each is the proximal operator of their sum. An infinite norm is not shrunk;
    where a bound is put on it, finite weights become 0.

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables (2006), equation 2.4, for the
    shrinkage; Simon et al., A sparse-group lasso (2013), section 3.2, for that after a soft-threshold; Yu, On decomposing the
    proximal map (2013), theorem 4, for the decay.
    """
    e, x = thresholded(z, s, h)
    sums = (_of_elements(group_sums(terms, layout, like), torch.float64, layout, like) for terms in products(e, x))
    return shrink(e, x, shrinkage(Squares(*sums), s, h, of_norm, z.dtype))


def thresholded(z: Tensor, s: Tensor | float, h: Hyper) -> tuple[Tensor, Tensor]:
    """Does what is done to elements, bounds and soft-threshold: e and x of `Squares`."""
    t = in_type_of(z, threshold_of(s, h))
    z = clamp(z, float(h.lower), float(h.upper))
    return torch.where(t > 0, within(z, t), torch.zeros_like(z)), soft_threshold(z, t)


def products(e: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the terms of `Squares`. Where nothing is taken, nothing of an infinite x is, either."""
    e, x = e.double(), x.double()
    return x * x, e * e, torch.where(e == 0, torch.zeros_like(x), e * x)


def shrinkage(squares: Squares, s: Tensor | float, h: Hyper, of_norm: OfNorm, dtype: torch.dtype) -> Shrinkage:
    """Computes what is done to groups with these sums and step ``s``, in ``dtype``.

    The limit is one of the norm of all that is taken, ``e + q * x``: the elements of a group, which have one step, move by up to
    ``lr * gain * sqrt(size)`` together, and so may one of them alone.
    """
    n = square_root(squares.left).to(dtype)
    s = s if isinstance(s, Tensor) else torch.full_like(n, s)
    zero, one = torch.zeros_like(n), torch.ones_like(n)
    limit = h.gain * s * of_norm.strength
    factor = torch.where(limit > 0, torch.where(n <= limit, zero, 1.0 - limit / n), one)
    divisor = divisor_of(s, h) + zero
    q = 1.0 - factor / divisor
    d = norm_of(one, q, squares)
    exceeds = d > of_norm.largest_shrink
    part = divide(of_norm.largest_shrink, d, like=n)
    kept = torch.where(exceeds & (squares.taken > 0), 1.0 - part, zero)
    factor = torch.where(exceeds, 1.0 - part * q, factor)
    divisor = torch.where(exceeds, one, divisor)
    norm = torch.where(exceeds, norm_of(1.0 - part, factor, squares), torch.where(limit > 0, n - limit, n))
    too_large = norm / divisor > h.max_norm
    divisor = torch.where(too_large, divide(norm, float(h.max_norm), like=n), divisor)
    if h.unit_norm:
        divisor = torch.where(norm > 0, norm, divisor)
    return Shrinkage(kept, factor, divisor)


def norm_of(a: Tensor, b: Tensor, squares: Squares) -> Tensor:
    """Returns the norm of ``a * e + b * x``."""
    p, q = a.double(), b.double()
    left, taken, both = squares
    return square_root(p * p * taken + 2.0 * p * q * both + q * q * left).to(a.dtype)


def shrink(e: Tensor, x: Tensor, by: Shrinkage) -> Tensor:
    """Makes of groups what ``by`` says, which is spread over their elements."""
    shrunk = torch.where(by.factor == 0, torch.zeros_like(x), x * by.factor / by.divisor)
    return torch.where(by.kept == 0, shrunk, (by.kept * e + by.factor * x) / by.divisor)


def of_norm(hyper: Hyper, size: int, dtype: torch.dtype) -> OfNorm:
    """Computes what a row says of the norm of a group of ``size`` elements."""
    root = float(numpy.sqrt(float(size)))
    strength = float(hyper.group_strength) * (root if hyper.group_by_size else 1.0)
    return OfNorm(*torch.tensor((strength, float(hyper.largest_shrink) * root), dtype=dtype, device="cpu").tolist())


def zero_groups(weight: Tensor, layout: GroupLayout) -> int:
    """Counts the groups that have elements, and all of them are 0."""
    return int(layout.size > 0) * int((group_sums((weight != 0).double(), layout, weight) == 0).sum())


def _add_in_order(x: NDArray[Any], axis: int) -> NDArray[Any]:
    # numpy.sum adds pairs of pairs.
    return numpy.add.accumulate(x, axis=axis).take(-1, axis)


def _in_memory(x: Tensor, like: Tensor) -> Tensor:
    """Returns the elements of ``x`` in the order of ``like``'s memory, 1-D."""
    laid_out = torch.empty_strided(like.shape, like.stride(), dtype=x.dtype, device=x.device)
    return laid_out.copy_(x).as_strided((like.numel(),), (1,))


def _of_elements(of_groups: Tensor, dtype: torch.dtype, layout: GroupLayout, like: Tensor) -> Tensor:
    """Spreads a number of each group, rounded to ``dtype``, over its elements."""
    outer, groups, inner = layout
    elements = of_groups.to(dtype).reshape(1, groups, 1).expand(outer, groups, inner).contiguous()
    return elements.as_strided(like.shape, like.stride())
