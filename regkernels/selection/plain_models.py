"""Refuses models whose parameters are not the weights that their layers compute with."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize


def check_model(model: object) -> None:
    """Raises for what is no module, for lazy ones, and for those that are pruned or parametrised, with the remedy.

    The weights of the latter are made of others in each forward pass: a penalty would fall on those, and such modules cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not any(True for _ in model.parameters()):
        raise ValueError(
            "model has no parameters, so that there is nothing to penalise: pass one with weights, such as nn.Linear"
        )
    for name, param in model.named_parameters():
        if isinstance(param, nn.UninitializedParameter):
            raise ValueError(f"{name} of the model has no shape yet (a lazy module): run a forward pass first")
    for name, module in model.named_modules():
        if remedy := _remedy(module):
            raise ValueError(
                f"{name or type(module).__name__} of the model computes its weights from others: run {remedy} first"
            )


def _remedy(module: nn.Module) -> str | None:
    """Returns the call that makes the weights of a module its parameters again; None where they are."""
    if parametrize.is_parametrized(module):
        name = next(iter(module.parametrizations))  # type: ignore[arg-type]
        return f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
    for hook in module._forward_pre_hooks.values():
        # torch.nn.utils names the tensor in `name`, pruning in `_tensor_name`.
        kind = type(hook).__module__.removeprefix("torch.nn.utils.")
        if name := getattr(hook, "_tensor_name", None):
            return f"torch.nn.utils.prune.remove(module, {name!r})"
        if kind in ("weight_norm", "spectral_norm"):
            return f"torch.nn.utils.remove_{kind}(module, {getattr(hook, 'name', 'weight')!r})"
    return None
