"""Follows the heads of attention layers: a head goes from all projections, if nobody reads it or what it gives is constant."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.structure import layers, modules, weighted
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Fixed, Layout

_GPT2 = "transformers.models.gpt2.modeling_gpt2.GPT2Attention"
_LLAMA = "transformers.models.llama.modeling_llama.LlamaAttention"
_MISTRAL = "transformers.models.mistral.modeling_mistral.MistralAttention"
_BERT = "transformers.models.bert.modeling_bert.BertAttention"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Names the projections of an attention layer, where it keeps the length of a head, and attributes that follow the heads.

    ``query``, ``key`` and ``value`` may be one fused layer, whose outputs are the three one after the other. ``heads`` are attributes
    that hold the number of heads, ``width`` those that hold the number of channels of all heads, and ``shared`` those that hold how many
    queries share a key.
    """

    query: str
    key: str
    value: str
    output: str
    head: str
    dropout: str
    heads: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        return self.query == self.value


_OF_LLAMA = Recipe(
    *("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "attention_dropout"), shared=("num_key_value_groups",)
)
RECIPES: dict[str, Recipe] = {
    _GPT2: Recipe(
        "c_attn",
        "c_attn",
        "c_attn",
        "c_proj",
        "head_dim",
        "attn_dropout.p",
        ("num_heads",),
        ("embed_dim", "split_size"),
    ),
    _LLAMA: _OF_LLAMA,
    _MISTRAL: _OF_LLAMA,
    _BERT: Recipe(
        "self.query",
        "self.key",
        "self.value",
        "output.dense",
        "self.attention_head_size",
        "self.dropout.p",
        ("self.num_attention_heads",),
        ("self.all_head_size",),
    ),
}


def recipe_for(module: nn.Module) -> Recipe | None:
    return RECIPES.get(layers.full_name(module))


def follow(facts: Facts, name: str, module: nn.Module) -> None:
    """Follows the heads of ``module``, if it is one that is known and its projections are plain."""
    recipe = recipe_for(module)
    if recipe is None or getattr(module, "is_cross_attention", False):
        return
    parts = {
        part: f"{name}.{part}".removeprefix(".") for part in (recipe.query, recipe.key, recipe.value, recipe.output)
    }
    found = {part: facts.model.get_submodule(full) for part, full in parts.items()}
    if any(facts.locked(full) for full in parts.values()) or not all(map(modules.torch_forward, found.values())):
        return
    size, made = int(_attribute(module, recipe.head)), {}
    for part in dict.fromkeys((recipe.query, recipe.key, recipe.value)):
        kind = layers.kind_of(found[part])
        if not isinstance(kind, layers.Kind):
            return
        made[part] = weighted.layer(facts, parts[part], found[part], kind, Fixed(f"the input of {name or 'attention'}"))
    query, key, value = _three(made, recipe)
    kind = layers.kind_of(found[recipe.output])
    assert isinstance(kind, layers.Kind)
    read = layers.Weights(found[recipe.output], kind).nonzero.any(0).reshape(len(value) // size, -1, size).any(2)
    made_of = value.taken(torch.arange(len(value)).reshape(-1, size).repeat_interleave(read.size(1), 0).flatten())
    spread = made_of.placed(units=query.units)
    spare = _spare(read, value.known.reshape(-1, size).all(1))
    _tie(facts, query.units, key.units, value, spare, size)
    left = (~read & read.any(1, keepdim=True)).scatter(1, spare, False)
    facts.uneven[parts[recipe.output]] = left.flatten().repeat_interleave(size).nonzero().flatten().tolist()
    if facts.training(module) and float(_attribute(module, recipe.dropout)) > 0:
        spread = spread.constant_if_zero()
    outputs = weighted.layer(facts, parts[recipe.output], found[recipe.output], kind, spread)
    facts.stop(outputs, f"{name or 'attention'} ({type(module).__name__}) adds them to the residual stream")
    facts.heads[name] = size


def _three(made: dict[str, Layout], recipe: Recipe) -> tuple[Layout, Layout, Layout]:
    if not recipe.fused:
        return made[recipe.query], made[recipe.key], made[recipe.value]
    whole = made[recipe.query]
    query, key, value = torch.arange(len(whole)).reshape(3, -1)
    return whole.taken(query), whole.taken(key), whole.taken(value)


def _tie(facts: Facts, queries: Tensor, keys: Tensor, value: Layout, spare: Tensor, size: int) -> None:
    """Ties what goes together: the channels of a head; its query, key and value; and the queries that share a key, but for spare ones."""
    values = value.units.reshape(-1, size)
    heads = queries.reshape(len(values), -1, size)
    owners = values[:, :1].repeat(1, heads.size(1))
    for among in spare.T:
        groups = torch.arange(len(among))
        owners[groups, among] = heads[0, among[0], 0]
    facts.units.tie(heads.flatten(), owners.flatten().repeat_interleave(size))
    for units in (keys, value.units):
        facts.units.tie(units, values[:, 0].repeat_interleave(size))


def _spare(read: Tensor, silent: Tensor) -> Tensor:
    """Returns per key the numbers of queries that can go without it: equally many of each key, as all have to share alike.

    Where whole keys can go, with all their queries, these go first: ``silent`` ones have constant values, or no query that is read.
    """
    unread = ~read
    count = 0 if bool((silent | unread.all(1)).any()) else int(unread.sum(1).min())
    return torch.stack([row.nonzero().flatten()[:count] for row in unread])


def resize(module: nn.Module) -> None:
    """Writes into an attention layer how many heads it has now."""
    recipe = recipe_for(module)
    assert recipe is not None
    output = module.get_submodule(recipe.output)
    kind = layers.kind_of(output)
    assert isinstance(kind, layers.Kind) and kind.input_size is not None
    width = int(getattr(output, kind.input_size))
    values = module.get_submodule(recipe.value)
    kind = layers.kind_of(values)
    assert isinstance(kind, layers.Kind)
    made = int(getattr(values, kind.output_size)) // (3 if recipe.fused else 1)
    sizes = dict.fromkeys(recipe.width, width) | dict.fromkeys(recipe.shared, width // made)
    sizes |= dict.fromkeys(recipe.heads, width // int(_attribute(module, recipe.head)))
    for path, count in sizes.items():
        owner, _, attribute = path.rpartition(".")
        setattr(module.get_submodule(owner), attribute, count)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
