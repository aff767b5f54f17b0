"""torch.library registrations, so that autograd and ``torch.compile(fullgraph=True)`` know the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.dynamo import outside_of_graphs
from regkernels.memory import has_layout, is_dense
from regkernels.still import Still
from regkernels.table.grouping import GroupLayout
from regkernels.table.hyper import Hyper

_library = torch.library.Library("regkernels", "DEF")
# The kernels' tables in device memory live from call to call, and a compiled program that replays CUDA graphs would take
# their memory for its own: such ops are called between its graphs.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name))
for _schema in (
    "penalty(Tensor[] params, float l1, float l2) -> Tensor",
    "penalty_gradient(Tensor upstream, Tensor[] params, float l1, float l2) -> Tensor[]",
    "soft_threshold(Tensor x, float threshold) -> Tensor",
    "soft_threshold_(Tensor(a!) x, float threshold) -> ()",
    "proximal(Tensor x, Tensor? l1_weight, str penalty, float[] hyper, int[] layout) -> Tensor",
):
    _library.define(_schema, tags=_TAGS)


def _dense(tensor: Tensor) -> Tensor:
    if not tensor.data_ptr() and tensor.numel():
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has no memory any more: FSDP has freed the parameters that it had gathered. "
            "Call backward() of the loss and of a penalty that was computed from them in one, or pass as params the list "
            "list(model.parameters()), made before the first forward pass"
        )
    return tensor if is_dense(tensor) and not tensor.is_neg() else tensor.resolve_neg().contiguous()


@outside_of_graphs
def _penalty(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    # Again here: while torch.compile traces, strengths have no values yet.
    validation.nonnegative("l1", l1)
    validation.nonnegative("l2", l2)
    return backends.backend_for(params[0].device).penalty([_dense(w) for w in params], l1, l2)


@outside_of_graphs
def _penalty_gradient(upstream: Tensor, params: Sequence[Tensor], l1: float, l2: float) -> list[Tensor]:
    weights = [_dense(w) for w in params]
    out = [torch.empty_like(w) for w in weights]
    if weights:
        backends.backend_for(upstream.device).penalty_gradient(weights, out, upstream, l1, 2.0 * l2)
    return out


@outside_of_graphs
def _soft_threshold(x: Tensor, threshold: float) -> Tensor:
    validation.nonnegative("threshold", threshold)
    x = _dense(x)
    out = torch.empty_like(x)
    backends.backend_for(x.device).soft_threshold(x, out, threshold)
    return out


@outside_of_graphs
def _soft_threshold_in_place(x: Tensor, threshold: float) -> None:
    validation.nonnegative("threshold", threshold)
    dense = _dense(x)
    backends.backend_for(x.device).soft_threshold(dense, dense, threshold)
    if dense is x:
        torch.autograd.graph.increment_version(x)  # a backward that saved x must notice
    else:
        x.copy_(dense)


@outside_of_graphs
def _proximal(
    x: Tensor, l1_weight: Tensor | None, penalty: str, hyper: Sequence[float], layout: Sequence[int]
) -> Tensor:
    out = _dense(x).clone()
    if l1_weight is not None and not has_layout(l1_weight, out):
        l1_weight = torch.empty_like(out, dtype=l1_weight.dtype).copy_(l1_weight)
    Still(out, penalty, l1_weight, GroupLayout(*layout)).apply(Hyper(*hyper))
    return out


for _key in ("CPU", "CUDA"):
    _library.impl("proximal", _proximal, _key)
    _library.impl("penalty", _penalty, _key)
    _library.impl("penalty_gradient", _penalty_gradient, _key)
    _library.impl("soft_threshold", _soft_threshold, _key)
    _library.impl("soft_threshold_", _soft_threshold_in_place, _key)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x) if is_dense(x) else torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("regkernels::penalty", lib=_library)
def _(params: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    return params[0].new_empty((), dtype=reference.penalty_dtype(params))


@torch.library.register_fake("regkernels::penalty_gradient", lib=_library)
def _(upstream: Tensor, params: Sequence[Tensor], l1: float, l2: float) -> list[Tensor]:
    return [_like(w) for w in params]


@torch.library.register_fake("regkernels::soft_threshold", lib=_library)
def _(x: Tensor, threshold: float) -> Tensor:
    return _like(x)


@torch.library.register_fake("regkernels::proximal", lib=_library)
def _(x: Tensor, l1_weight: Tensor | None, penalty: str, hyper: Sequence[float], layout: Sequence[int]) -> Tensor:
    return _like(x)


@torch.library.register_fake("regkernels::soft_threshold_", lib=_library)
def _(x: Tensor, threshold: float) -> None:
    return None


def spread(gradients: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """One gradient for each parameter that needs one."""
    left = iter(gradients)
    return [next(left) if need else None for need in needed]


def second_derivatives(
    upstream: Tensor,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor | None]]:
    """Of what a penalty's backward has computed, by ``upstream`` and by each of ``params``.

    ``gradients``: None where nobody asks; ``derivatives(w, g)``: the part of one parameter in the first, and the second.
    """
    of_upstream = torch.zeros_like(upstream)
    of_params: list[Tensor | None] = []
    for w, g in zip(params, gradients, strict=True):
        if g is None:
            of_params.append(None)
            continue
        part, of_param = derivatives(w, g)
        of_upstream = of_upstream + part.to(upstream.dtype)
        of_params.append(of_param.to(w.dtype))
    return of_upstream, of_params


def _save_penalty(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    params, ctx.l1, ctx.l2 = inputs
    ctx.save_for_backward(*params)


def _penalty_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    wanted = [w for w, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[0], strict=True) if needed]
    gradients = torch.ops.regkernels.penalty_gradient(upstream, wanted, ctx.l1, ctx.l2)
    return spread(gradients, ctx.needs_input_grad[0]), None, None


def _save_penalty_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    upstream, params, ctx.l1, ctx.l2 = inputs
    ctx.save_for_backward(upstream, *params)


def _penalty_gradient_backward(ctx: Any, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Of ``upstream * (l1 * sign(w) + 2 * l2 * w)``: in eager operations, differentiable once more."""
    upstream, *params = ctx.saved_tensors

    def derivatives(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return (g * (ctx.l1 * w.sign() + 2.0 * ctx.l2 * w)).sum(), g * (2.0 * ctx.l2 * upstream)

    return *second_derivatives(upstream, params, gradients, derivatives), None, None


torch.library.register_autograd("regkernels::penalty", _penalty_backward, setup_context=_save_penalty, lib=_library)
torch.library.register_autograd(
    "regkernels::penalty_gradient", _penalty_gradient_backward, setup_context=_save_penalty_gradient, lib=_library
)


def _save_threshold(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.threshold = inputs
    ctx.save_for_backward(output)


def _threshold_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    """1 where the result is not zero, else 0; everywhere 1 for threshold 0, where the operator is the identity."""
    (output,) = ctx.saved_tensors
    return (upstream * (output != 0) if ctx.threshold else upstream.clone()), None


torch.library.register_autograd(
    "regkernels::soft_threshold", _threshold_backward, setup_context=_save_threshold, lib=_library
)


def _save_proximal(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.penalty, ctx.hyper, ctx.layout = inputs
    ctx.save_for_backward(x if ctx.penalty == "group" else output)


def _proximal_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    (saved,) = ctx.saved_tensors
    h = Hyper(*ctx.hyper)
    if ctx.penalty != "group":
        return upstream * reference.slope(ctx.penalty, saved, h), None, None, None, None
    v = _dense(saved)
    like_v = torch.empty_like(v).copy_(upstream)
    return reference.group_slope(v, like_v, h, GroupLayout(*ctx.layout)), None, None, None, None


torch.library.register_autograd("regkernels::proximal", _proximal_backward, setup_context=_save_proximal, lib=_library)
