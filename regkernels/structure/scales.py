"""Follows channels through tensors that forward reads itself, such as a layer scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regkernels.structure import layers, modules
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Held, Layout, Value


def of_held(
    facts: Facts, x: Layout, held: Held, function: Callable[[Tensor, Tensor], Tensor], *, swapped: bool
) -> Value | None:
    """Follows ``x * gamma`` and the like, where ``gamma`` has one number per channel, which goes with the channel."""
    if x.spread is not None or not held.alone or not _lies_along(held.tensor, x):
        return None
    reason = _why_not_cut(facts, held.target)
    if reason is not None:
        return facts.stop(x, f"{held.target}, which belongs to them, cannot be cut: {reason}")
    facts.scales[held.target] = (x.units, held.tensor.dim() + x.dim)
    scale = layers.wide(held.tensor).flatten().to(x.value.dtype)
    value = function(scale, x.value) if swapped else function(x.value, scale)
    if function is not torch.mul:
        return x.constant(x.known, value)
    zero = scale == 0
    return x.constant(x.known | zero, torch.where(zero, 0, value))


def _lies_along(tensor: Tensor, x: Layout) -> bool:
    if tensor.dim() < -x.dim or not tensor.is_floating_point() or tensor.numel() != len(x):
        return False
    return tensor.size(x.dim) == len(x) and (tensor.dim() == -x.dim or (x.rank is not None and tensor.dim() <= x.rank))


def _why_not_cut(facts: Facts, target: str) -> str | None:
    if target.startswith("_tensor_constant"):
        return "forward makes it"
    owner = target.rpartition(".")[0]
    module = facts.model.get_submodule(owner)
    if layers.kind_of(module) is not None or modules.rule_for(module) is not None:
        return "a layer uses it, too"
    locked = facts.locked(owner)
    if locked is not None:
        return f"what it is part of {locked}"
    others = _in_the_memory_of(facts.model, target)
    return f"{others[0]} lies in its memory" if others else None


def _in_the_memory_of(model: nn.Module, target: str) -> list[str]:
    """Returns the names of other parameters and buffers that share memory with one."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    places = {name: tensor.untyped_storage().data_ptr() for name, tensor in named if tensor.layout == torch.strided}
    return [name for name, place in places.items() if name != target and place == places.get(target) != 0]
