"""Finds what a parameter stands for: itself, or a tensor of its module that is computed from it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

NORMALISING = {_WeightNorm: "weight_norm", _SpectralNorm: "spectral_norm", _Orthogonal: "orthogonal"}
"""Parametrisations for whose result the length of what they are given does not count."""


class Stored(NamedTuple):
    """Names a parameter, and the tensor of a module that it stands for.

    Attributes:
        name: of the parameter in the model.
        param: the parameter.
        module: whose tensor it stands for.
        tensor: the tensor's name there; for an entry of a list or a dictionary of parameters, with that one's name before it.
        parametrisation: what lies between the parameter and the tensor; empty where nothing does.
        normalised: whether that makes the parameter's length irrelevant.
        magnitude: whether the parameter is the length that weight_norm has taken out.
    """

    name: str
    param: Tensor
    module: nn.Module
    tensor: str
    parametrisation: str = ""
    normalised: bool = False
    magnitude: bool = False


def stored(model: nn.Module, prefix: str, module: nn.Module, name: str, param: Tensor) -> Stored:
    """Returns what the parameter ``name`` of ``module``, which is ``model``'s ``prefix``, stands for."""
    full = f"{prefix}.{name}" if prefix else name
    if isinstance(module, ParametrizationList) and ".parametrizations." in f".{prefix}":
        return _parametrised(model, prefix, module, name, full, param)
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        owner, _, own = prefix.rpartition(".")  # of the list: a model of its own has none
        return Stored(full, param, model.get_submodule(owner) if own else module, f"{own}.{name}")
    return _hooked(module, name, full, param)


def _parametrised(
    model: nn.Module, prefix: str, module: ParametrizationList, name: str, full: str, param: Tensor
) -> Stored:
    owner, _, tensor = f".{prefix}".rpartition(".parametrizations.")
    kinds = [type(parametrisation) for parametrisation in module]
    known = next((NORMALISING[kind] for kind in kinds if kind in NORMALISING), None)
    magnitude = kinds[0] is _WeightNorm and name == "original0"
    # Of several originals nobody knows which part of the tensor each is: the shape decides.
    one_of_several = known is None and not module.is_tensor
    return Stored(
        full,
        param,
        module if one_of_several else model.get_submodule(owner.removeprefix(".")),
        name if one_of_several else tensor,
        known or ", ".join(kind.__name__ for kind in kinds),
        normalised=known is not None and not magnitude,
        magnitude=magnitude,
    )


def _hooked(module: nn.Module, name: str, full: str, param: Tensor) -> Stored:
    """Looks for hooks that compute a tensor before each forward pass, as pruning and the older norms of weights do."""
    tensor = name
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and tensor == f"{hook._tensor_name}_orig":
            tensor = hook._tensor_name
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and tensor in (f"{hook.name}_g", f"{hook.name}_v"):
            is_direction = tensor.endswith("_v")
            return Stored(full, param, module, hook.name, "weight_norm", is_direction, not is_direction)
        if isinstance(hook, SpectralNorm) and tensor == f"{hook.name}_orig":
            return Stored(full, param, module, hook.name, "spectral_norm", normalised=True)
    return Stored(full, param, module, tensor)
