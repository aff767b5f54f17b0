"""Says of each parameter whether it is to be penalised, and why: by the module that owns it, then by its name, then by its shape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from regkernels.param_groups.normalised import Stored, stored


class Role(NamedTuple):
    """Says what becomes of a parameter.

    Attributes:
        penalised: whether it is a weight in the sense of a penalty.
        reason: in a few words, for whoever reads the table; empty where only the shape could say, and there is none yet.
        normalised: the parametrisation that makes its length irrelevant; empty where there is none.
    """

    penalised: bool
    reason: str
    normalised: str = ""


NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear, _ConvNd), "weight"),
    ((nn.RNNBase, nn.RNNCellBase), "weight_.*"),
    ((nn.MultiheadAttention,), "(in|q|k|v)_proj_weight"),
)
"""Names of the weights of modules, whatever their shape: that of a layer with one output has one row."""

# Modules of others, by the names of their classes.
NORM_CLASS = re.compile(r"norm(ali[sz](ation|er|e))?(?![a-z])", re.IGNORECASE)
WEIGHT_CLASS = re.compile(r"Linear|Conv(?![a-z])|Dense(?![a-z])")
POSITION_CLASS = re.compile(r"Position(?!wise)|Pos(Emb|Enc)")
EMBEDDING_CLASS = re.compile(r"Embed")

# Words in the names of parameters that a module of another kind owns itself.
BY_WORD = (
    ("bias", {"bias", "biases", "shift", "shifts", "offset", "offsets"}),
    ("logarithm", {"log", "logs"}),  # of a scale, as in state space models
    ("position", {"pos", "position", "positions", "positional", "posemb", "posembed", "wpe"}),
    ("token", {"token", "tokens", "cls"}),
    ("scale", {"scale", "scales", "gamma", "gammas", "beta", "betas", "gain", "gains", "layerscale", "magnitude"}),
)
EMBEDDING_WORDS = {"emb", "embed", "embeds", "embedding", "embeddings", "wte"}


def roles(model: nn.Module, *, embeddings: bool) -> dict[int, Role]:
    """Returns the role of each trainable parameter by its id. ``embeddings``: whether they are penalised.

    A parameter that several modules own is penalised where it would be in all of them.
    """
    owners: dict[int, list[Stored]] = {}
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if param.requires_grad:
                owners.setdefault(id(param), []).append(stored(model, prefix, module, name, param))
    return {key: _of_all(places, embeddings) for key, places in owners.items()}


def _of_all(places: Iterable[Stored], embeddings: bool) -> Role:
    found = [(_of(place, embeddings), place.name) for place in places]
    role = next((role for role, _ in found if not role.penalised), found[0][0])
    others = [name for _, name in found[1:]]  # the model calls it by the first one
    return role._replace(reason=f"{role.reason}, tied to {', '.join(others)}") if others else role


def _of(place: Stored, embeddings: bool) -> Role:
    if place.magnitude:
        return Role(False, f"magnitude of {place.parametrisation}")
    role = _of_tensor(place, embeddings)
    if role.penalised and place.normalised:
        return Role(True, f"direction of {place.parametrisation}", place.parametrisation)
    return role._replace(reason=f"{role.reason}, behind {place.parametrisation}") if place.parametrisation else role


def _of_tensor(place: Stored, embeddings: bool) -> Role:
    """Returns the role of a tensor by its owner's class, by its name, or by its shape."""
    module, param = place.module, place.param
    kind = re.sub("^(Parametrized|FSDP)", "", type(module).__name__)
    is_weight = any(isinstance(module, types) and re.fullmatch(name, place.tensor) for types, name in WEIGHTS)
    if getattr(param, "_no_weight_decay", False):  # as authors of state space models mark what must not decay
        return Role(False, "marked _no_weight_decay")
    if is_weight or (WEIGHT_CLASS.search(kind) and place.tensor in ("weight", "kernel")):
        return Role(True, f"weight of {kind}")
    if isinstance(module, NORMS) or (NORM_CLASS.search(kind) and not WEIGHT_CLASS.search(kind)):
        return Role(False, f"norm ({kind})")
    if isinstance(module, EMBEDDINGS):
        return Role(embeddings, "embedding")
    return _of_name(place, kind, embeddings) or _of_shape(param)


def _of_name(place: Stored, kind: str, embeddings: bool) -> Role | None:
    """Returns the role that the name of a parameter says, or that of its owner's class; None where they say nothing."""
    words = set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", place.tensor).lower()))
    for role, known in BY_WORD:
        if words & known:
            return Role(False, role)
    if POSITION_CLASS.search(kind):
        return Role(False, f"position ({kind})")
    if words & EMBEDDING_WORDS or EMBEDDING_CLASS.search(kind):
        return Role(embeddings, "embedding")
    return None


def _of_shape(param: Tensor) -> Role:
    if isinstance(param, UninitializedParameter):
        return Role(False, "")
    dimensions = sum(length != 1 for length in param.shape)
    return Role(True, f"{dimensions} dimensions") if dimensions >= 2 else Role(False, ("scalar", "vector")[dimensions])
