"""GPT-2, Llama and BERT of transformers: units and heads that are dead go, and the outputs stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regkernels as rk

pytest.importorskip("transformers")
from tests.structure import hugging_face as hf

pytestmark = pytest.mark.usefixtures("one_thread")

# Llama's two dead query heads share one of two dead key and value heads; hidden units are 96 in GPT-2 and 40 in the others.
WIDTHS = {
    "gpt2": {"transformer.h.1.mlp.c_proj": 96 - 3, "transformer.h.1.attn.c_proj": 18},
    "llama": {"model.layers.1.mlp.down_proj": 40 - 3, "model.layers.1.self_attn.o_proj": 12},
    "bert": {"bert.encoder.layer.1.output.dense": 40 - 3, "bert.encoder.layer.1.attention.output.dense": 18},
}


@pytest.mark.parametrize("name", hf.MODELS)
def test_dead_units_and_heads_go(name: str) -> None:
    torch.manual_seed(0)
    model = hf.with_dead_parts(hf.MODELS[name]())
    compacted = rk.compact(model, eval_only=True)
    for path, width in WIDTHS[name].items():
        layer = compacted.model.get_submodule(path)
        assert getattr(layer, "in_features", getattr(layer, "nx", None)) == width
    torch.testing.assert_close(hf.logits(compacted.model), hf.logits(model), rtol=1e-12, atol=1e-12)
    assert compacted.kept == ()


@pytest.mark.parametrize("name", hf.MODELS)
def test_examples_as_a_tokenizer_makes_them(name: str) -> None:
    model = hf.with_dead_parts(hf.MODELS[name]())
    tokens = torch.randint(50, (2, 7))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    compacted = rk.compact(model, example, eval_only=True)
    assert compacted.parameters == rk.compact(model, eval_only=True).parameters < compacted.parameters_before


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_heads_behind_dropout_stay_for_training_and_are_reported(name: str) -> None:
    """The value of a dead head is its bias, which dropout makes random; units go all the same."""
    compacted = rk.compact(hf.with_dead_parts(hf.MODELS[name]()))
    widths = list(WIDTHS[name].items())
    layers = [compacted.model.get_submodule(path) for path, _ in widths]
    found = [getattr(layer, "in_features", getattr(layer, "nx", None)) for layer in layers]
    assert found == [widths[0][1], 24]
    assert any("eval_only=True removes them" in kept.reason for kept in compacted.kept)


def test_heads_whose_output_nobody_reads_go_for_training_too() -> None:
    model = hf.gpt2()
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight[:12] = 0
    small = rk.compact(model).model
    attention = small.transformer.h[0].attn
    assert (attention.num_heads, attention.split_size, attention.c_attn.nf) == (2, 12, 36)
    torch.testing.assert_close(hf.logits(small.eval()), hf.logits(model.eval()))


def test_a_key_and_value_head_stays_while_one_of_its_queries_is_read() -> None:
    model = hf.llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 6:12] = 0
    compacted = rk.compact(model)
    assert compacted.parameters == compacted.parameters_before
    assert model.model.layers[0].self_attn.o_proj.in_features == 24


def test_training_goes_on() -> None:
    model = rk.compact(hf.with_dead_parts(hf.bert()), eval_only=True).model.train()
    model(hf.tokens(), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all(param.grad is not None and param.grad.shape == param.shape for param in model.parameters())


def test_a_subclass_of_an_attention_that_is_known_is_not() -> None:
    model = hf.with_dead_parts(hf.gpt2())
    attention = model.transformer.h[0].attn
    attention.__class__ = type("Changed", (type(attention),), {})
    small = rk.compact(model, eval_only=True).model
    assert small.transformer.h[0].attn.c_attn.nf == 72
    torch.testing.assert_close(hf.logits(small), hf.logits(model), rtol=1e-12, atol=1e-12)


def test_conv1d_in_a_model_that_can_be_traced() -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(8, 4), nn.GELU(), Conv1D(3, 8)).double()
    with torch.no_grad():
        model[0].weight[:, [2, 6]] = 0
        model[0].bias.fill_(1)
    small = rk.compact(model).model
    assert small[0].weight.shape == (4, 6) and small[0].nf == small[2].nx == 6
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x))
