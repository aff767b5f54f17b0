"""Refuses models whose parameters are not the weights that their layers compute with."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from regkernels.structure.computed import check_plain


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
    check_plain(model)
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            tensor = next(iter(module.parametrizations))  # type: ignore[arg-type]
            raise ValueError(
                f"{name or type(module).__name__} of the model computes its {tensor} from others: run "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r}) first"
            )
