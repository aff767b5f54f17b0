"""Knows what functions and methods of tensors do to channels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from regkernels.structure import scales, shapes, slices, views
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Held, Layout, Number, Pieces, Share, Sizes, Value

_ELEMENTWISE_NAMES = (
    *("relu", "tanh", "sigmoid", "abs", "exp", "neg", "square", "clamp", "clamp_min", "clamp_max", "pow", "sin", "cos"),
    *("relu_", "tanh_", "sigmoid_", "clamp_", "float", "double", "half", "bfloat16", "to", "type", "detach", "clone"),
    *("contiguous", "expm1", "log1p", "erf", "softplus", "sqrt", "rsqrt"),
)
_MAY_RETURN_THEIR_ARGUMENT = ("float", "double", "half", "bfloat16", "to", "type", "detach", "contiguous", "detach_")
_ELEMENTWISE_FUNCTIONS = (
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "hardtanh", "hardswish", "hardsigmoid"),
    *("logsigmoid", "threshold"),
)
_SUMS: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), torch.add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), torch.sub),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), torch.div),
}
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_REDUCTIONS = {
    **{target: name for name in ("mean", "sum", "amax", "amin") for target in (name, getattr(torch, name))},
}
_DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_POOLS = {
    **{getattr(F, f"{kind}_pool{n}d"): n for kind in ("max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)},
    **{getattr(F, f"avg_pool{n}d"): n for n in (1, 2, 3)},
}
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_VIEWS = ("view", "reshape", torch.reshape)
_ASKING = ("dim", "ndimension", "device", "dtype", "ndim", "requires_grad", "is_cuda", "training")


def call(facts: Facts, node: fx.Node) -> Value | None:
    """Returns what ``node``, a call of a function or method, makes of its tensors; None if it is not known."""
    x = facts.value(node.args[0]) if node.args else None
    target: Any = node.target
    if target is operator.floordiv and isinstance(x, Share):
        return slices.fraction(x, node.args[1])
    counts = [value for source in node.all_input_nodes if isinstance(value := facts.values[source], Share)]
    if target in (operator.getitem, torch.split, "split"):
        cut = _cut(facts, node, x)
        return None if counts and not isinstance(cut, (Layout, Pieces)) else cut
    if counts and target not in _VIEWS:
        facts.stop_all((count.layout for count in counts), "forward asks for their number")
        return None
    if target in _SUMS or target in _PRODUCTS:
        return _binary(facts, node)
    if target in (torch.cat, torch.concat, torch.concatenate):
        return _concatenated(facts, node)
    if target is getattr and isinstance(x, Layout):
        return _asked(node, x)
    if not isinstance(x, Layout):
        return None
    if target in _elementwise:
        return _mapped(facts, node, x)
    if target in _DROPOUT:
        p, training = _argument(node, 1, "p", 0.5), _argument(node, 2, "training", True)
        return x if p == 0 or training is False else x.constant_if_zero()
    if target in _POOLS:
        return _pooled(facts, node, x, _POOLS[target])
    if target in _REDUCTIONS:
        dims, keepdim = _argument(node, 1, "dim", None), _argument(node, 2, "keepdim", False)
        known = set(node.kwargs) <= {"dim", "keepdim", "dtype"} and isinstance(keepdim, bool)
        return shapes.reduced(facts, x, dims if known else None, bool(keepdim), _REDUCTIONS[target])
    return _reshaped(facts, node, x)


def _reshaped(facts: Facts, node: fx.Node, x: Layout) -> Value | None:
    target, rest = node.target, node.args[1:]
    if target in (torch.flatten, "flatten"):
        start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
        return shapes.flattened(facts, x, start, end) if isinstance(start, int) and isinstance(end, int) else None
    if target in _VIEWS and not node.kwargs:
        return views.viewed(facts, x, node.args[0], _unpacked(rest))
    if target == "expand_as" and isinstance(like := facts.value(rest[0]), Layout):
        return shapes.expanded(facts, x, like)
    if target in ("permute", torch.permute) and not node.kwargs:
        order = _unpacked(rest)
        return shapes.permuted(facts, x, order) if all(isinstance(dim, int) for dim in order) else None
    if target in ("transpose", torch.transpose):
        a, b = _argument(node, 1, "dim0", None), _argument(node, 2, "dim1", None)
        return shapes.transposed(facts, x, a, b) if isinstance(a, int) and isinstance(b, int) else None
    if target in ("chunk", torch.chunk):
        return shapes.chunked(facts, x, _argument(node, 1, "chunks", None), _argument(node, 2, "dim", 0))
    if target in ("unsqueeze", torch.unsqueeze):
        return slices.unsqueezed(x, _argument(node, 1, "dim", None))
    if target is F.glu:
        dim = _argument(node, 1, "dim", -1)
        return shapes.gated(facts, x, dim) if isinstance(dim, int) else None
    if target == "size":
        dim = _argument(node, 1, "dim", None)
        return Sizes(x, node.args[0]) if dim is None else slices.sizes(x, node.args[0], dim, facts)
    return Number() if target in _ASKING else None


def _unpacked(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def _cut(facts: Facts, node: fx.Node, x: Value | None) -> Value | None:
    if not isinstance(x, (Layout, Sizes, Pieces)):
        return None
    if node.target is operator.getitem:
        of = x.of if isinstance(x, Sizes) else node.args[0]
        return slices.indexed(facts, x, of, node.args[1])
    size, dim = (
        _argument(node, 1, "split_size_or_sections", _argument(node, 1, "split_size", None)),
        _argument(node, 2, "dim", 0),
    )
    return slices.split(facts, x, facts.value(size), dim) if isinstance(x, Layout) else None


def _asked(node: fx.Node, x: Layout) -> Value | None:
    if node.args[1] == "shape":
        return Sizes(x, node.args[0])
    return Number() if node.args[1] in _ASKING else None


def _mapped(facts: Facts, node: fx.Node, x: Layout) -> Value | None:
    rest, options = node.args[1:], {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if any(isinstance(argument, fx.Node) for argument in (*rest, *options.values())):
        return None
    target = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    return x.mapped(lambda value: target(value, *rest, **options))


def _pooled(facts: Facts, node: fx.Node, x: Layout, spatial: int) -> Value:
    plain = not _argument(node, 6, "return_indices", False) and x.spread is None
    if not plain or -x.dim <= spatial:
        return facts.stop(x, f"{node.name} goes over them")
    average = node.target in _AVERAGES
    other_sums = len(node.args) > 3 or {"padding", "divisor_override"} & {*node.kwargs}
    return x.constant_if_zero() if average and other_sums else x


def _binary(facts: Facts, node: fx.Node) -> Value | None:
    if len(node.args) != 2 or node.kwargs:
        return None
    a, b = (facts.value(argument) for argument in node.args)
    if isinstance(a, Number) and isinstance(b, Number):
        return Number()
    if isinstance(a, Layout) and isinstance(b, Layout):
        return _of_two(facts, node, a, b)
    x, number = (a, b) if isinstance(a, Layout) else (b, a)
    if isinstance(x, Layout) and isinstance(number, Held):
        function = torch.mul if node.target in _PRODUCTS else _SUMS[node.target]
        return scales.of_held(facts, x, number, function, swapped=x is not a)
    if not isinstance(x, Layout) or not isinstance(number, Number):
        return None
    if number.value is None:
        return x.constant_if_zero() if node.target in _PRODUCTS else x.nowhere_constant()
    function, scalar = _SUMS.get(node.target, torch.mul), torch.tensor(number.value, dtype=x.value.dtype)
    return x.mapped(lambda value: function(value, scalar) if x is a else function(scalar, value))


def _of_two(facts: Facts, node: fx.Node, a: Layout, b: Layout) -> Value:
    if (len(a), a.dim, a.spread) != (len(b), b.dim, b.spread):
        return facts.stop_all((a, b), f"{node.name} meets them with other channels")
    facts.units.tie(a.units, b.units)
    if node.target in _PRODUCTS:
        return shapes.product(a, b)
    rank = None if a.rank is None or b.rank is None else max(a.rank, b.rank)
    return a.placed(rank=rank).constant(a.known & b.known, _SUMS[node.target](a.value, b.value))


def _concatenated(facts: Facts, node: fx.Node) -> Value | None:
    parts, dim = node.args[0], _argument(node, 1, "dim", 0)
    if not isinstance(parts, (list, tuple)) or not parts:
        return None
    values = [facts.value(part) for part in parts]
    layouts = [value for value in values if isinstance(value, Layout)]
    return shapes.joined(facts, layouts, dim) if len(layouts) == len(values) else None


_elementwise: set[Any] = {
    *_ELEMENTWISE_NAMES,
    *(getattr(torch, name) for name in _ELEMENTWISE_NAMES if hasattr(torch, name)),
    *(getattr(F, name) for name in _ELEMENTWISE_FUNCTIONS),
    operator.neg,
    operator.pow,
}


def makes_new_memory(node: fx.Node) -> bool:
    """Tells whether the result is certainly not a view of an argument, if the function does not work in place."""
    target: Any = node.target
    if target in _elementwise:
        return getattr(target, "__name__", target) not in _MAY_RETURN_THEIR_ARGUMENT
    return target in _SUMS or target in _PRODUCTS or target in _REDUCTIONS or target in _POOLS


def is_elementwise(function: object) -> bool:
    return function in _elementwise


def asked_in_place(node: fx.Node) -> bool:
    """Tells whether ``inplace`` is True, given by position."""
    if node.target in _DROPOUT:
        return len(node.args) > 3 and node.args[3] is True
    return node.target in _flagged and any(argument is True for argument in node.args)


_flagged = {getattr(F, name) for name in _ELEMENTWISE_FUNCTIONS}
