"""Divides a model's parameters into those to penalise and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from regkernels import validation
from regkernels.distributed import flattened
from regkernels.optim import penalty_keys
from regkernels.optim.effects import makes_zeros
from regkernels.optim.group_keys import refuse_keys
from regkernels.optim.penalty_keys import OFF, Penalties
from regkernels.param_groups.roles import Role, roles
from regkernels.param_groups.table import NAMES, ParamGroups, Row
from regkernels.table.formats import compute_dtype

Choice = Callable[[str, Tensor], bool | None]
"""Says of a parameter, by its name, whether it is penalised; None where its role is to decide."""


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    embeddings: bool = False,
    regularise: Choice | None = None,
    **options: Any,
) -> ParamGroups:
    """Makes two param groups for an optimizer: the weights to penalise, and the rest with ``l1 = weight_decay = 0``.

    Print what it returns: a table says which parameters are penalised, which are not, and why. Weights of linear, convolutional,
    recurrent and attention layers are penalised; biases, all of normalisations, embeddings, class tokens, position parameters,
    scales and magnitudes are not: shrinking them changes a layer's output range instead of its complexity. The module that owns a
    parameter decides first, then the parameter's name, then its shape: two dimensions or more are penalised, not counting those of
    length 1. Each trainable parameter is in one of the groups, once; where it is tied, it is penalised if it would be in all of
    its places, so an output matrix that is the embedding, too, is treated as the embedding. Frozen ones are in neither.

    Of a parametrised weight the parameters behind it are penalised. Where a parametrisation normalises (weight_norm, spectral_norm,
    orthogonal), the length of what is behind it means nothing to the loss: no decay, and a penalty that makes zeros is refused.

    Args:
        model: any module; not changed. Before `FullyShardedDataParallel` wraps it, which flattens its parameters.
        weight_decay: for the first group, >= 0; with the factor 1/2 (``weight_decay = 2 * l2``).
        l1: for the first group, >= 0, in units of the loss.
        embeddings: penalises embeddings, too.
        regularise: which parameters go into the first group, by name and tensor: True, False, or None for what is done without
            it, such as ``lambda name, p: False if "head" in name else None``.
        options: further keys for both groups (``lr``, ``betas``, ...). Penalties and constraints (`regkernels.optim.Penalties`)
            go into the first group only; ``l1_weights`` may be a dict of tensors by parameter name, 1 where there is none.
            ``name`` is put before the names of the groups.

    Returns:
        ``[{"params": [...], "name": "penalised", "weight_decay": ..., "l1": ..., **options}, {..., "name": "not penalised",
        "weight_decay": 0.0, "l1": 0.0}]``; ``params`` may be empty. Suits every optimizer of regkernels; torch.optim
        ignores ``l1`` and penalties.

    Raises:
        TypeError, ValueError: for a model that is none or has no trainable parameter, a negative or non-finite number, an option
            that is none of a param group, flattened parameters, zeros behind a parametrisation that normalises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    validation.nonnegative("weight_decay", weight_decay)
    validation.nonnegative("l1", l1)
    _check_choice(embeddings, regularise)
    if "params" in options:
        raise ValueError("params cannot be an option: the groups take their parameters from the model")
    refuse_keys(options)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not named:
        raise ValueError("model has no trainable parameter (requires_grad=True)")
    chosen = _chosen(model, named, embeddings, regularise, {**options, "l1": l1, "weight_decay": weight_decay})
    penalties = {key: options.pop(key) for key in list(options) if key in Penalties.__annotations__}
    if isinstance(penalties.get("l1_weights"), Mapping):
        regularised = [item for item, role in zip(named, chosen, strict=True) if role.penalised]
        penalties["l1_weights"] = _listed(penalties["l1_weights"], regularised)
    before = f"{options.pop('name')}, " if "name" in options else ""
    rows = [Row(name, _shape(p), role.penalised, role.reason) for (name, p), role in zip(named, chosen, strict=True)]
    groups = [
        {
            "params": [param for (_, param), role in zip(named, chosen, strict=True) if role.penalised is wanted],
            "name": before + NAMES[wanted],
            "weight_decay": weight_decay if wanted else 0.0,
            "l1": l1 if wanted else 0.0,
            **options,
            **{key: value if wanted else OFF.get(key, value) for key, value in penalties.items()},
        }
        for wanted in (True, False)
    ]
    given = {"l1": l1, "weight_decay": weight_decay, **penalties}
    strengths = [f", {key}={value}" for key, value in given.items() if isinstance(value, (int, float)) and value]
    return ParamGroups(groups, rows, "".join(strengths))


def _check_choice(embeddings: Any, regularise: Any) -> None:
    """Raises where the arguments that choose parameters are not allowed, alone or together."""
    if not isinstance(embeddings, bool):
        raise TypeError(f"embeddings must be True or False, got {embeddings!r}")
    if regularise is not None and not callable(regularise):
        raise TypeError(f"regularise must be a function of a parameter's name and the parameter, got {regularise!r}")


def _answer(regularise: Choice | None, name: str, param: Tensor) -> bool | None:
    """Returns what the user says of a parameter; None where that is left to its role."""
    answer = None if regularise is None else regularise(name, param)
    if answer is not None and not isinstance(answer, int):
        raise TypeError(
            f"regularise must return True, False, or None for what is done without it, got {answer!r} for {name}"
        )
    return answer if answer is None else bool(answer)


def _chosen(
    model: nn.Module,
    named: Sequence[tuple[str, Tensor]],
    embeddings: bool,
    regularise: Choice | None,
    strengths: Mapping[str, Any],
) -> list[Role]:
    """Returns for each parameter in ``named`` whether it is penalised, and why."""
    by_id = roles(model, embeddings=embeddings)
    takes_real_numbers = bool(penalty_keys.asked(strengths)) or penalty_keys.is_active(strengths, "l1")
    chosen = []
    for name, param in named:
        role, asked = by_id[id(param)], _answer(regularise, name, param)
        if asked is None and flattened.is_flattened(param):
            raise ValueError(
                f"{name} {flattened.BECAUSE}, so that nobody can tell weights from biases; {flattened.REMEDY}"
            )
        if asked is None and role.penalised and param.is_complex() and takes_real_numbers:
            role = Role(False, "complex, for which the penalty is not defined")
        wanted = role.penalised if asked is None else asked
        if wanted and role.normalised:
            # Unasked, no direction decays: only a penalty has to be refused.
            zeros = [key for key in makes_zeros(strengths) if asked is not None or key != "weight_decay"]
            if zeros:
                raise ValueError(_direction_refused(name, zeros[0], role.normalised))
        if asked is None and not role.reason:
            raise ValueError(
                f"{name} has no shape yet, which would decide whether it is penalised; run a batch through the model first, "
                "or choose by name, regularise=lambda name, p: ..."
            )
        if asked is not None:
            role = Role(wanted, "chosen by regularise" if wanted else "left out by regularise")
        elif role.normalised:  # its length is nothing to the loss, and must not become 0
            role = role._replace(penalised=False)
        chosen.append(role)
    return chosen


def _direction_refused(name: str, key: str, parametrisation: str) -> str:
    own = name.rpartition(".")[2]
    magnitude = {"weight_norm": own[:-1] + ("0" if own[-1] == "1" else "g")}.get(
        parametrisation
    )  # beside its direction
    left_out = own if magnitude is None else (magnitude, own)
    return (
        f"{key} cannot act on {name}: {parametrisation} normalises it, so its length is nothing to the loss, and {key} would shrink it "
        f"to 0, where the weight is 0 / 0. Remove the parametrisation before training; or add a penalty of the computed weight to "
        f"the loss, such as regkernels.l1_penalty([module.weight], ...); or leave such parameters out, "
        f"regularise=lambda name, p: False if name.endswith({left_out!r}) else None"
    )


def _shape(param: Tensor) -> tuple[int, ...] | None:
    return None if isinstance(param, UninitializedParameter) else tuple(param.shape)


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
