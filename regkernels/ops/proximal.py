"""Registers the proximal operators: of a soft threshold, and of everything that a step does to its weights after the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.memory import dense_strides, in_layout_of
from regkernels.ops.library import check_memory, dense, keep, kept, like, register
from regkernels.reference import differentiable
from regkernels.reference.kinds import Kind
from regkernels.table import segments
from regkernels.table.batch import Batch, Memory, Operands
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper
from regkernels.table.segments import Segment


def _soft_threshold(x: Tensor, threshold: float) -> Tensor:
    validation.nonnegative("threshold", threshold)
    x = dense(x)
    out = torch.empty_like(x)
    backends.backend_for(x.device).soft_threshold(x, out, threshold)
    return out


def _soft_threshold_in_place(x: Tensor, threshold: float) -> None:
    validation.nonnegative("threshold", threshold)
    own = dense(x)
    backends.backend_for(x.device).soft_threshold(own, own, threshold)
    if own is x:
        torch.autograd.graph.increment_version(x)  # a backward that saved x must notice
    else:
        x.copy_(own)


def _proximal(
    x: Tensor, l1_weight: Tensor | None, penalty: str, hyper: Sequence[float], layout: Sequence[int]
) -> Tensor:
    out = dense(x).clone()
    if l1_weight is not None:
        validation.check_memory(l1_weight, "the weights")
        l1_weight = in_layout_of(l1_weight, out)
    batch = _batch(out, penalty, l1_weight, GroupLayout(*layout), Hyper(*hyper))
    backends.backend_for(out.device).update(batch, with_sums=False)
    return out


def _batch(weight: Tensor, penalty: str, l1_weight: Tensor | None, layout: GroupLayout, row: Hyper) -> Batch:
    """Describes a step by the rule "still", which moves nothing, so that the penalty alone acts; the weight is the gradient, too."""
    address = weight.data_ptr()
    segment = Segment(
        weight=address,
        gradient=address,
        l1_weight=0 if l1_weight is None else l1_weight.data_ptr(),
        numel=weight.numel(),
        groups=layout.groups,
        inner=layout.inner,
        kind=Kind("still", weight.dtype, penalty=penalty).number,
    )

    def operands() -> list[Operands]:
        groups = layout if penalty == "group" else None
        return [Operands("still", weight, weight, (), penalty=penalty, l1_weight=l1_weight, layout=groups)]

    return Batch(weight.device, segments.table([segment]), operands, [row], Memory())


def _fake_threshold(x: Tensor, threshold: float) -> Tensor:
    return like(x)


def _fake_threshold_in_place(x: Tensor, threshold: float) -> None:
    return None


def _fake_proximal(
    x: Tensor, l1_weight: Tensor | None, penalty: str, hyper: Sequence[float], layout: Sequence[int]
) -> Tensor:
    return like(x)


def _threshold_differentiable_in_place(x: Tensor, threshold: float) -> None:
    x.copy_(differentiable.soft_threshold(x, threshold))


def _save_threshold(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.threshold = inputs
    keep(ctx, [output])


def _threshold_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    """Multiplies by 1 where the result is not zero, else 0; everywhere 1 for threshold 0, where the operator is the identity."""
    (output,) = kept(ctx)
    check_memory(output, "the output")
    return (upstream * (output != 0) if ctx.threshold else upstream.clone()), None


def _save_proximal(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, l1_weight, ctx.penalty, ctx.hyper, ctx.layout = inputs
    ctx.strides = dense_strides(x)
    keep(ctx, [x if ctx.penalty == "group" else output, *([] if l1_weight is None else [l1_weight])])


def _proximal_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    saved, *weights = kept(ctx)
    for tensor in (saved, *weights):
        check_memory(tensor, "a tensor")
    h = Hyper(*ctx.hyper)
    if ctx.penalty != "group":
        return upstream * reference.slope(ctx.penalty, saved, h, *weights), None, None, None, None
    if (
        saved.stride() != ctx.strides
    ):  # those of a copy, as hooks of saved tensors make them; the layout is of the original
        saved = saved.new_empty_strided(saved.shape, ctx.strides).copy_(saved)
    return reference.group_slope(saved, upstream, h, GroupLayout(*ctx.layout)), None, None, None, None


register(
    "soft_threshold(Tensor x, float threshold) -> Tensor",
    _soft_threshold,
    _fake_threshold,
    differentiable.soft_threshold,
    _save_threshold,
    _threshold_backward,
)
register(
    "soft_threshold_(Tensor(a!) x, float threshold) -> ()",
    _soft_threshold_in_place,
    _fake_threshold_in_place,
    _threshold_differentiable_in_place,
)
register(
    "proximal(Tensor x, Tensor? l1_weight, str penalty, float[] hyper, int[] layout) -> Tensor",
    _proximal,
    _fake_proximal,
    differentiable.proximal,
    _save_proximal,
    _proximal_backward,
)
