"""Registers all operators, in this one place, so that autograd and ``torch.compile(fullgraph=True)`` know the kernels.

What the kernels' operators have in common stands here, too: they take dense memory, and penalties are differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import reference, transforms
from regkernels.dynamo import outside_of_graphs
from regkernels.memory import empty_dense, has_memory, is_usable


class _Library(torch.library.Library):
    """Defines operators whose derivatives are `register`'s, until a transform of torch.func is running, or forward-mode differentiation."""

    differentiable: Callable[..., Any]
    """Of the operator that is being registered: the same in operations that every transform knows."""

    def impl(self, op_name: str, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        """Registers ``fn``; where it is what torch makes of a backward function, behind a look at what is running."""
        super().impl(
            op_name,
            _unless_transformed(fn, self.differentiable) if dispatch_key == "Autograd" else fn,
            dispatch_key,
            **options,
        )


def _unless_transformed(autograd: Callable[..., Any], differentiable: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keyset: Any, *args: Any) -> Any:
        return differentiable(*args) if transforms.active() else autograd(keyset, *args)

    return kernel


_library = _Library("regkernels", "DEF")
# The kernels' tables in device memory live from call to call, and a compiled program that replays CUDA graphs would take
# their memory for its own: such ops are called between its graphs.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name))


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Registers ``torch.ops.regkernels.NAME``, where ``schema`` begins with NAME.

    ``fake`` makes outputs of the right shapes without values, for tracing. ``save`` keeps in a context what ``backward`` needs;
    an operator without the two has no derivative. ``differentiable`` does the same in operations of torch, for its transforms:
    torch knows no forward-mode derivative of others' operators, and its transforms hand over tensors without memory.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.differentiable = differentiable
    for key in ("FuncTorchBatched", "Batched"):  # the latter: of torch.autograd.grad(is_grads_batched=True)
        _library.impl(name, differentiable, key)
    for key in ("CPU", "CUDA"):
        _library.impl(name, outside_of_graphs(implementation), key)
    torch.library.register_fake(f"regkernels::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"regkernels::{name}", backward, setup_context=save, lib=_library)


def dense(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a contiguous copy where its elements are not one run of memory. Raises where it has none any more."""
    check_memory(tensor, "a tensor")
    return tensor if is_usable(tensor) else tensor.resolve_neg().contiguous()


def check_memory(tensor: Tensor, name: str) -> None:
    """Raises where a parameter has no memory any more, saying what to do where FSDP has freed it."""
    if not transforms.unreadable(tensor) and not has_memory(tensor):
        raise RuntimeError(
            f"{name} of shape {tuple(tensor.shape)} has no memory any more: FSDP has freed the parameters that it had gathered, or "
            "somebody has resized their storage. "
            "Call backward() of the loss and of a penalty that was computed from them in one, or pass as params the list "
            "list(model.parameters()), made before the first forward pass"
        )


def keep(ctx: Any, tensors: Sequence[Tensor]) -> None:
    """Keeps tensors for the backward pass, and what they look like: whoever exchanges their data leaves autograd no trace."""
    ctx.save_for_backward(*tensors)
    ctx.kept = [(tensor.shape, tensor.dtype) for tensor in tensors]


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """Returns what `keep` has kept; raises where it is no longer what it was."""
    tensors: tuple[Tensor, ...] = ctx.saved_tensors
    for tensor, (shape, dtype) in zip(tensors, ctx.kept, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeError(
                f"a tensor that a penalty or an operator was computed from had shape {tuple(shape)} and dtype {dtype}, and in the "
                f"backward pass it has shape {tuple(tensor.shape)} and dtype {tensor.dtype}: its data was exchanged in between; call "
                "backward() before, or compute the value again"
            )
    return tensors


def like(x: Tensor) -> Tensor:
    """Makes an empty tensor in the layout that `dense` gives."""
    return empty_dense(x)


def spread(gradients: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """Returns one gradient for each parameter that needs one."""
    left = iter(gradients)
    return [next(left) if need else None for need in needed]


def second_derivatives(
    upstream: Tensor,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    derivatives: Callable[..., tuple[Tensor, Tensor]],
    *more: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor | None]]:
    """Differentiates what a penalty's backward has computed, by ``upstream`` and by each of ``params``.

    ``gradients``: None where nobody asks; ``derivatives(w, g)``: the part of one parameter in the first, and the second; it is given an element of each
    of ``more``, too.
    """
    of_upstream = torch.zeros_like(upstream)
    of_params: list[Tensor | None] = []
    for w, g, *rest in zip(params, gradients, *more, strict=True):
        if g is None:
            of_params.append(None)
            continue
        part, of_param = derivatives(w, g, *rest)
        of_upstream = of_upstream + part.to(upstream.dtype)
        of_params.append(of_param.to(w.dtype))
    return of_upstream, of_params


def fake_value(params: Sequence[Tensor], *options: Any) -> Tensor:
    """Stands for the value of a penalty, for tracing: 0-dim."""
    return params[0].new_empty((), dtype=reference.penalty_dtype(params))


def fake_gradients(upstream: Tensor, params: Sequence[Tensor], *options: Any) -> list[Tensor]:
    """Stands for one gradient for each parameter, for tracing."""
    return [like(w) for w in params]
