"""Which parameters are penalised in models of transformers, whose layers are classes of its own."""

from __future__ import annotations

import pytest
from torch import nn

import regkernels


def penalised(model: nn.Module) -> list[str]:
    name_of = {id(param): name for name, param in model.named_parameters()}
    return [name_of[id(param)] for param in regkernels.param_groups(model)[0]["params"]]


def test_models_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11))
    vit = transformers.ViTModel(transformers.ViTConfig(**small, image_size=8, patch_size=4))
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, vocab_size=11))
    for model, left_out in (
        (gpt, ("wte.", "wpe.", "ln_", "bias")),
        (vit, ("cls_token", "position_embeddings", "layernorm", "bias")),
        (llama, ("embed_tokens", "norm")),
    ):
        expected = [name for name, _ in model.named_parameters() if not any(part in name for part in left_out)]
        assert penalised(model) == expected and len(expected) > 5
