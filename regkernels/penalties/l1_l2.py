"""Offers L1 and L2 in the loss: one fused pass over all parameters forward, one backward."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

import regkernels.ops  # noqa: F401  (registers torch.ops.regkernels)
from regkernels import transforms, validation
from regkernels.distributed.shards import check_weight, held
from regkernels.penalties.listed import Params, evaluated, listed_tensors, plain_strength, times


def l1_penalty(params: Params, strength: float | Tensor, weights: Tensor | Iterable[Tensor] | None = None) -> Tensor:
    """Returns ``strength * sum |w|`` over all elements of all parameters. The gradient is ``strength * sign(w)``, sign(0) = 0.

    Args:
        params: a tensor, an iterable of tensors, or a module (its trainable parameters). float64, float32, float16 or
            bfloat16, any shapes and strides, mixed as you like; memory that appears twice counts once. Of a `DTensor` the whole
            tensor counts, and every rank gets its value: call it on all ranks. Not changed.
        strength: >= 0, in units of the loss; a float, or a 0-dim tensor, which gets a gradient, too. ``torch.compile``
            takes a float for a constant and compiles anew for another value: schedule a tensor there.
        weights: of each element, for the adaptive lasso ``strength * sum weight * |w|``: a tensor like each parameter, in the
            order of ``params`` (of a module: its trainable parameters), finite and >= 0, without gradient. 0 leaves an element out. Float
            tensors of the compute type (float32, or float64 for float64 parameters) and in the parameter's memory layout are read as they are, others are
            converted in every call. For a `DTensor` one that is spread alike. Values are checked on the CPU only. Not changed.

    Returns:
        0-dim tensor on the autograd graph; float64 where a parameter is, else float32. Twice differentiable.

    Raises:
        TypeError, ValueError: naming what is not allowed (integer, complex, sparse or partial tensors, no tensors, a strength
            that is negative, infinite or NaN).

    To let weights become exactly zero use ``l1=`` of `regkernels.optim`; a penalty in the loss only makes them small.
    Source of the adaptive lasso: Zou (2006).
    """
    if weights is not None:
        return _weighted(params, strength, weights)
    return _penalty(params, strength, None)


def l2_penalty(params: Params, strength: float | Tensor) -> Tensor:
    """Returns ``strength * sum w**2`` over all elements of all parameters, without 1/2: the gradient is ``2 * strength * w``.

    ``weight_decay`` of an optimizer has the 1/2: ``weight_decay = 2 * strength``. Arguments, result and errors as in
    `l1_penalty`.
    """
    return _penalty(params, None, strength)


def elastic_net_penalty(params: Params, l1: float | Tensor, l2: float | Tensor) -> Tensor:
    """Returns ``l1 * sum |w| + l2 * sum w**2`` in one pass; no 1/2 before ``l2``. Arguments, result and errors as in `l1_penalty`.

    scikit-learn's ElasticNet(alpha, l1_ratio) has ``l1 = alpha * l1_ratio`` and ``l2 = alpha * (1 - l1_ratio) / 2``.
    Source: Zou and Hastie (2005).
    """
    return _penalty(params, l1, l2)


def _penalty(params: Params, l1: float | Tensor | None, l2: float | Tensor | None) -> Tensor:
    listed = listed_tensors(params)
    names = ("strength", "strength") if l1 is None or l2 is None else ("l1", "l2")
    l1, l2 = (plain_strength(name, strength) for name, strength in zip(names, (l1, l2), strict=True))
    for name, strength in zip(names, (l1, l2), strict=True):
        if strength is not None and not torch.compiler.is_compiling():
            validation.nonnegative(name, strength, wait=False)
    function = torch.ops.regkernels.penalty
    if not isinstance(l1, Tensor) and not isinstance(l2, Tensor):
        return evaluated([(function, (float(l1 or 0.0), float(l2 or 0.0)))], listed)[0]
    units = [(strength, unit) for strength, unit in ((l1, (1.0, 0.0)), (l2, (0.0, 1.0))) if strength is not None]
    found = evaluated([(function, unit) for _, unit in units], listed)
    terms = [
        (strength.to(value.dtype).reshape(()) if isinstance(strength, Tensor) else strength) * value
        for (strength, _), value in zip(units, found, strict=True)
    ]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _weighted(params: Params, strength: float | Tensor, weights: Tensor | Iterable[Tensor]) -> Tensor:
    listed = listed_tensors(params)
    given = [weights] if isinstance(weights, Tensor) else list(weights)
    if len(given) != len(listed):
        raise ValueError(f"weights has {len(given)} tensors, params has {len(listed)}: pass one for each")
    for index, (tensor, factor) in enumerate(zip(listed, given, strict=True)):
        if not isinstance(factor, Tensor):
            raise TypeError(f"weights[{index}] must be a tensor, got {type(factor).__name__}: {factor!r}")
        if factor.layout != torch.strided or factor.dtype not in validation.WEIGHT_DTYPES:
            raise TypeError(
                f"weights[{index}] must be a dense float64, float32, float16 or bfloat16 tensor, got {factor.layout}, "
                f"{factor.dtype}"
            )
        if factor.shape != tensor.shape or factor.device != tensor.device:
            raise ValueError(
                f"weights[{index}] has shape {tuple(factor.shape)} and is on {factor.device}, params[{index}] has shape "
                f"{tuple(tensor.shape)} and is on {tensor.device}; they must agree"
            )
        check_weight(factor, tensor, f"weights[{index}]", f"params[{index}]")
        if not torch.compiler.is_compiling() and not transforms.hides(held(factor)):
            validation.check_memory(held(factor), f"weights[{index}]")
        if factor.requires_grad:
            raise ValueError(f"weights[{index}] requires a gradient, which this penalty does not give: detach() it")
    strength = plain_strength("strength", strength)
    if not torch.compiler.is_compiling():
        validation.nonnegative("strength", strength, wait=False)
    weighted = torch.ops.regkernels.weighted_l1
    if isinstance(strength, Tensor):
        return times(strength, evaluated([(weighted, (1.0,))], listed, given)[0])
    return evaluated([(weighted, (float(strength),))], listed, given)[0]
