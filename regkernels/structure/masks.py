"""Knows weights that torch.nn.utils makes anew before each forward: pruning masks, and the old weight and spectral norms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_REMEDIES: dict[type, str] = {
    prune.BasePruningMethod: "torch.nn.utils.prune.remove(module, {name!r})",
    WeightNorm: "torch.nn.utils.remove_weight_norm(module, {name!r})",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(module, {name!r})",
}


def check_none(model: nn.Module) -> None:
    """Raises where a weight is made by a hook, which no copy of the model can have."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if remedy := _remedy(hook):
                raise ValueError(
                    f"a weight of {path or 'the model'} is made anew before each forward by {type(hook).__name__} of torch.nn.utils; "
                    f"make it plain first: module = model.get_submodule({path!r}); {remedy}"
                )


def _remedy(hook: object) -> str | None:
    """Returns the call that makes the weight behind a hook a parameter again; None where there is none."""
    for kind, remedy in _REMEDIES.items():
        if isinstance(hook, kind):
            return remedy.format(name=str(getattr(hook, "_tensor_name", getattr(hook, "name", "weight"))))
    return None


def masked(model: nn.Module, name: str, param: Tensor) -> Tensor:
    """Returns a parameter as forward sees it: under the mask that pruning has put beside it, if there is one."""
    path, _, key = name.rpartition(".")
    mask = getattr(model.get_submodule(path), f"{key.removesuffix('_orig')}_mask", None)
    pruned = key.endswith("_orig") and isinstance(mask, Tensor) and mask.shape == param.shape
    return param.detach() * mask if pruned and mask is not None else param
