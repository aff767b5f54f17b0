"""Tiny models of transformers with random weights, and dead units and heads in them: what tests of their compaction share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# None is skipped where transformers is missing: the tests that import this do that.
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

DEAD_UNITS = [1, 2, 5]


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=4))


def llama(key_value_heads: int = 2) -> nn.Module:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=key_value_heads, **sizes))


def bert() -> nn.Module:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes))


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt2": gpt2, "llama": llama, "bert": bert}


@torch.no_grad()
def with_dead_parts(model: nn.Module) -> nn.Module:
    """In float64 and evaluation, with random biases; units DEAD_UNITS of the MLPs and the second head (of the values) are dead."""
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            param.normal_(std=0.5)
    for name, module in model.named_modules():
        part = name.rpartition(".")[2]
        if part == "c_fc":
            module.weight[:, DEAD_UNITS] = 0
        elif part in ("gate_proj",) or name.endswith("intermediate.dense"):
            module.weight[DEAD_UNITS] = 0
        elif part == "c_attn":
            module.weight[:, 48 + 6 : 48 + 12] = 0
        elif part == "v_proj" or name.endswith("self.value"):
            module.weight[6:12] = 0
    return model.double().eval()


def tokens() -> Tensor:
    return torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(tokens()).logits
    return made
