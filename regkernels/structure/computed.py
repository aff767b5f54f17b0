"""Knows the weights that hooks of torch.nn.utils compute anew in every forward: pruned, and normalised in the old style."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_REMEDIES: dict[type, tuple[str, str]] = {
    prune.BasePruningMethod: ("pruned", "torch.nn.utils.prune.remove"),
    WeightNorm: ("computed by weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("computed by spectral_norm", "torch.nn.utils.remove_spectral_norm"),
}


def check_plain(model: nn.Module) -> None:
    """Raises where the tensors that layers compute with are no parameters, and torch cannot copy them."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            for kind, (how, remedy) in _REMEDIES.items():
                if isinstance(hook, kind):
                    weight = getattr(hook, "_tensor_name", None) or getattr(hook, "name", "weight")
                    raise ValueError(
                        f"{weight} of {name or 'the model'} ({type(module).__name__}) is {how}; run {remedy}(module, {weight!r}) first, "
                        "for this module and the others like it"
                    )


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Returns, by the names of pruned parameters, which of their elements count."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                name = f"{prefix}.{hook._tensor_name}".removeprefix(".")
                found[f"{name}_orig"] = getattr(module, f"{hook._tensor_name}_mask")
    return found
