"""Knows what modules do to channels: one function per family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import batchnorm, instancenorm, padding, pooling

from regkernels.structure import layers, shapes
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Layout, Value

_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Tanhshrink,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.Threshold,
)
_ELEMENTWISE_NAMES = {
    f"transformers.activations.{name}"
    for name in ("GELUActivation", "GELUTanh", "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation")
}
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_KEEPING_CONSTANTS = (
    pooling._MaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    padding._CircularPadNd,
)
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax)
Rule = Callable[[Facts, str, Any, Layout], Value]


def _elementwise(facts: Facts, name: str, module: nn.Module, x: Layout) -> Value:
    return x.mapped(module)


def _identity(facts: Facts, name: str, module: nn.Module, x: Layout) -> Value:
    return x


def _dropout(facts: Facts, name: str, module: nn.Dropout, x: Layout) -> Value:
    return x.constant_if_zero() if facts.training(module) and module.p > 0 else x


def _spatial(module: nn.Module) -> int:
    """Counts the dimensions that a pooling or padding module goes over, as its name says."""
    base = next(base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.nn"))
    return int(base[-2])


def _keeping_constants(facts: Facts, name: str, module: Any, x: Layout) -> Value:
    if getattr(module, "return_indices", False) or x.spread is not None or -x.dim <= _spatial(module):
        return facts.stop(x, f"{name} ({type(module).__name__}) goes over them")
    return x


def _average(facts: Facts, name: str, module: Any, x: Layout) -> Value:
    result = _keeping_constants(facts, name, module, x)
    padded = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    exact = getattr(module, "divisor_override", None) is None and (not module.count_include_pad or not any(padded))
    return result.constant_if_zero() if isinstance(result, Layout) and not exact else result


def _constant_padding(facts: Facts, name: str, module: Any, x: Layout) -> Value:
    result = _keeping_constants(facts, name, module, x)
    if not isinstance(result, Layout):
        return result
    return result.constant(result.known & (result.value == module.value), result.value)


def _upsampling(facts: Facts, name: str, module: nn.Upsample, x: Layout) -> Value:
    if x.rank is None or x.rank + x.dim != 1 or x.spread is not None:
        return facts.stop(x, f"{name} (Upsample) may go over them")
    return x


def _norm(facts: Facts, name: str, module: batchnorm._NormBase, x: Layout) -> Value:
    sized = x.sized(module.num_features)
    # Of two dimensions, a batch normalisation takes the last one for channels, and an instance normalisation the first.
    sure = sized is not None and (sized.rank is not None or isinstance(module, batchnorm._BatchNorm))
    if sized is None or not sure or (sized.rank is not None and sized.rank + sized.dim != 1):
        return facts.stop(x, f"{name} ({type(module).__name__}) normalises along another dimension")
    facts.channels[name] = sized.units
    return sized.constant(*layers.normalised(module, sized.known, sized.value, facts.training(module)))


def _prelu(facts: Facts, name: str, module: nn.PReLU, x: Layout) -> Value:
    if module.num_parameters != 1:
        if x.spread is not None or len(x) != module.num_parameters or x.rank is None or x.rank + x.dim != 1:
            return facts.stop(x, f"{name} (PReLU) may have its slopes along another dimension")
        facts.channels[name] = x.units
    slope = layers.wide(module.weight)
    return x.mapped(lambda value: torch.where(value >= 0, value, value * slope.to(value.dtype)))


def _mixing(facts: Facts, name: str, module: nn.Module, x: Layout) -> Value:
    return facts.stop(x, f"{name} ({type(module).__name__}) mixes them: without the zeros its outputs would differ")


def _flatten(facts: Facts, name: str, module: nn.Flatten, x: Layout) -> Value:
    return shapes.flattened(facts, x, module.start_dim, module.end_dim)


def _glu(facts: Facts, name: str, module: nn.GLU, x: Layout) -> Value:
    return shapes.gated(facts, x, module.dim)


def _rules() -> Iterator[tuple[type, Rule]]:
    yield from ((kind, _elementwise) for kind in _ELEMENTWISE)
    yield from ((kind, _dropout) for kind in _DROPOUT)
    yield from ((kind, _keeping_constants) for kind in _KEEPING_CONSTANTS)
    yield from ((kind, _mixing) for kind in _MIXING)
    yield from (
        (nn.Identity, _identity),
        (pooling._AvgPoolNd, _average),
        (padding._ConstantPadNd, _constant_padding),
        (nn.Upsample, _upsampling),
        (batchnorm._BatchNorm, _norm),
        (instancenorm._InstanceNorm, _norm),
        (nn.PReLU, _prelu),
        (nn.Flatten, _flatten),
        (nn.GLU, _glu),
    )


RULES: dict[type, Rule] = dict(_rules())


def rule_for(module: nn.Module) -> Rule | None:
    if layers.full_name(module) in _ELEMENTWISE_NAMES:
        return _elementwise
    return next((RULES[base] for base in type(module).__mro__ if base in RULES), None)


def torch_forward(module: nn.Module) -> bool:
    """Tells whether the module does what the class of torch.nn does that it is or is derived from."""
    if "forward" in vars(module):
        return False
    if layers.full_name(module) in (*_ELEMENTWISE_NAMES, layers.TRANSPOSED_LINEAR):
        return True
    defining = {key: base for base in reversed(type(module).__mro__) for key in _DECISIVE if key in vars(base)}
    return all(base.__module__.startswith("torch.nn.modules.") for base in defining.values())


_DECISIVE = ("forward", "_conv_forward", "__call__")
