"""Divides a model's parameters into those to penalise and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkernels import validation
from regkernels.optim.penalty_keys import OFF, Penalties
from regkernels.table.formats import compute_dtype


def has_two_dimensions(name: str, param: Tensor) -> bool:
    return param.dim() >= 2


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    regularise: Callable[[str, Tensor], bool] = has_two_dimensions,
    **options: Any,
) -> list[dict[str, Any]]:
    """Makes two param groups for an optimizer: the weights to penalise, and the rest with ``l1 = weight_decay = 0``.

    Biases, the scales and shifts of normalisations, and other 1-D or 0-D tensors are not regularised: shrinking them
    changes a layer's output range instead of its complexity. Each trainable parameter is in one of the groups, once,
    also when it is tied; frozen ones are in neither.

    Args:
        model: any module; not changed.
        weight_decay: for the first group, >= 0; with the factor 1/2 (``weight_decay = 2 * l2``).
        l1: for the first group, >= 0, in units of the loss.
        regularise: which parameters go into the first group, by name and tensor; the default takes those with two
            dimensions or more. To leave embeddings out: ``lambda name, p: p.dim() >= 2 and "embed" not in name``.
        options: further keys for both groups (``lr``, ``betas``, ...). Penalties and constraints (`regkernels.optim.Penalties`)
            go into the first group only; ``l1_weights`` may be a dict of tensors by parameter name, 1 where there is none.

    Returns:
        ``[{"params": [...], "weight_decay": ..., "l1": ..., **options}, {..., "weight_decay": 0.0, "l1": 0.0}]``; a list
        may be empty. Suits every optimizer of regkernels; torch.optim ignores ``l1`` and penalties.

    Raises:
        TypeError, ValueError: for a model that is none or has no trainable parameter, a negative or non-finite number.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    validation.nonnegative("weight_decay", weight_decay)
    validation.nonnegative("l1", l1)
    if not callable(regularise):
        raise TypeError(f"regularise must be a function of a parameter's name and the parameter, got {regularise!r}")
    if "params" in options:
        raise ValueError("params cannot be an option: the groups take their parameters from the model")
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not named:
        raise ValueError("model has no trainable parameter (requires_grad=True)")
    chosen = [bool(regularise(name, param)) for name, param in named]
    penalties = {key: options.pop(key) for key in list(options) if key in Penalties.__annotations__}
    if isinstance(penalties.get("l1_weights"), Mapping):
        regularised = [item for item, c in zip(named, chosen, strict=True) if c]
        penalties["l1_weights"] = _listed(penalties["l1_weights"], regularised)
    return [
        {
            "params": [param for (_, param), c in zip(named, chosen, strict=True) if c is wanted],
            "weight_decay": weight_decay if wanted else 0.0,
            "l1": l1 if wanted else 0.0,
            **options,
            **{key: value if wanted else OFF.get(key, value) for key, value in penalties.items()},
        }
        for wanted in (True, False)
    ]


def _listed(weights: Mapping[str, Tensor], named: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """Returns the weight of each parameter in ``named``, ones where ``weights`` has none; raises for a name of nobody."""
    unknown = weights.keys() - {name for name, _ in named}
    if unknown:
        raise ValueError(
            f"l1_weights names {', '.join(sorted(map(repr, unknown)))}, which is no regularised parameter; there are "
            f"{', '.join(repr(name) for name, _ in named)}"
        )
    return [weights[name] if name in weights else _ones(param) for name, param in named]


def _ones(param: Tensor) -> Tensor:
    return torch.ones_like(param, dtype=compute_dtype(param.dtype), requires_grad=False)
