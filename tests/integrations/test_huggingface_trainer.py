"""Hugging Face's Trainer, with a GPT-2 of one layer made from its config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTModel,
    get_linear_schedule_with_warmup,
)

import regkernels
from regkernels import FlatParameters, optim
from tests.integrations.problem import FORMATS, zeros
from tests.support.training import assert_equal, assert_near, within

REGULARISED = {"l1": 0.002, "weight_decay": 0.01}
CONFIG = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 20}
WITHOUT_CHANCE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**CONFIG, **WITHOUT_CHANCE)).to(dtype)


def trainer(model: nn.Module, optimizer: tuple[type, dict[str, Any]] | None, **more: Any) -> Trainer:
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    arguments = {"per_device_train_batch_size": 4, "dataloader_pin_memory": False, "max_steps": 6, **quiet, **more}
    tokens = torch.randint(20, (64, 7), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    others = {key: arguments.pop(key) for key in ("callbacks", "optimizers") if key in arguments}
    return Trainer(
        model,
        TrainingArguments("out", **arguments),
        train_dataset=rows,
        optimizer_cls_and_kwargs=optimizer,
        **others,
    )


def adamw(model: nn.Module, **more: Any) -> tuple[type, dict[str, Any]]:
    groups = regkernels.param_groups(model, **REGULARISED)
    return optim.AdamW, {"params": groups, "lr": 0.02, "weight_decay_mode": "prox", **more}


def sgd(model: nn.Module, **more: Any) -> tuple[type, dict[str, Any]]:
    return optim.SGD, {"params": regkernels.param_groups(model, **REGULARISED), "lr": 0.05, "momentum": 0.9, **more}


each_optimizer = pytest.mark.parametrize("make", [adamw, sgd])


def recorded_inputs(model: nn.Module) -> list[dict[str, Any]]:
    """What the model is called with from now on."""
    calls: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


@pytest.mark.parametrize("accumulate", [1, 2])
@each_optimizer
def test_equals_a_plain_loop_over_the_same_batches(make: Any, accumulate: int) -> None:
    """The Trainer clips to 1 and decays lr linearly unless told otherwise."""
    model = gpt2()
    other = copy.deepcopy(model)
    calls = recorded_inputs(model)
    trainer(model, make(model), gradient_accumulation_steps=accumulate).train()
    assert len(calls) == 6 * accumulate

    kind, options = make(other)
    optimizer = kind(**options)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 6)
    for index, inputs in enumerate(calls, 1):
        other(**inputs).loss.backward()
        if index % accumulate == 0:
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert_equal(model, other)
    assert 100 < zeros(model) < 900, "of 992: neither none nor all"
    assert model.lm_head.weight is model.transformer.wte.weight, "tied, and updated once"


def test_an_optimizer_made_by_hand() -> None:
    """Before the Trainer has seen the model."""
    model = gpt2()
    other = copy.deepcopy(model)
    kind, options = adamw(model)
    trainer(model, None, optimizers=(kind(**options), None)).train()
    trainer(other, adamw(other)).train()
    assert_equal(model, other)


def test_torch_optim_without_regularisation() -> None:
    """The groups are the Trainer's own. With this eps, noise in gradients that are zero in theory stays noise."""
    model = gpt2()
    other = copy.deepcopy(model)
    for net, kind in ((model, optim.AdamW), (other, torch.optim.AdamW)):
        trainer(net, (kind, {"lr": 0.02, "eps": 1e-2}), weight_decay=0.1).train()
    assert_near(model, other, 1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = gpt2()
    other = copy.deepcopy(model)
    trainer(model, adamw(model)).train()
    trainer(other, adamw(other), activation_checkpointing=True).train()
    assert_equal(model, other)


def test_l1_reaches_biases_unless_groups_are_passed() -> None:
    model = gpt2()
    everything = {id(p) for p in model.parameters()}
    matrices = {id(p) for p in model.parameters() if p.dim() >= 2}
    of_layers = matrices - {id(model.transformer.wte.weight), id(model.transformer.wpe.weight)}
    for options, weight_decay, reached, decayed in (
        ({"l1": 0.1}, 0.1, everything, matrices),  # the Trainer's own groups
        (adamw(model)[1], 0.01, of_layers, of_layers),
    ):
        groups = trainer(model, (optim.AdamW, options), weight_decay=0.1).create_optimizer().param_groups
        assert {id(p) for group in groups if group["l1"] for p in group["params"]} == reached
        assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == decayed
        assert {group["weight_decay"] for group in groups} == {weight_decay, 0.0}
        assert "params" not in options, "docs/frameworks.md: the Trainer takes them out"


@pytest.mark.parametrize(("dtype", "param_rounding"), FORMATS, ids=str)
@each_optimizer
def test_resumed_from_a_checkpoint(make: Any, dtype: torch.dtype, param_rounding: str, tmp_path: Path) -> None:
    """The weights are those of a run that was not interrupted."""
    rounding = {"param_rounding": param_rounding, "seed": 5}
    model = gpt2(dtype)
    trainer(model, make(model, **rounding), save_strategy="steps", save_steps=3).train()
    other = gpt2(dtype)
    resumed = trainer(other, make(other, **rounding))
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert_equal(model, other)
    states = resumed.optimizer.state.values()
    kinds = {key: tensor.dtype for state in states for key, tensor in state.items()}
    assert kinds.pop("remainder", torch.int16) == torch.int16
    count = torch.float64 if param_rounding == "stochastic" else torch.float32
    assert kinds.pop("step", count) == count
    assert set(kinds.values()) == {torch.float32}


def test_clipping_in_the_step_instead_of_the_trainers() -> None:
    model = gpt2()
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    trainer(model, sgd(model), max_grad_norm=0.1).train()
    trainer(other, sgd(other, max_grad_norm=0.1), max_grad_norm=0.0).train()
    assert_near(model, other, 1e-5)
    trainer(third, sgd(third), max_grad_norm=0.0).train()
    assert (third.lm_head.weight - model.lm_head.weight).abs().max() > 1e-3, "clipping took part"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flat_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    """The Trainer sets gradients to None; checkpoints are those of any model."""
    model = gpt2(dtype)
    other, resumed = copy.deepcopy(model), gpt2(dtype)
    flats = [FlatParameters(model), FlatParameters(resumed)]
    trainer(model, adamw(model), save_strategy="steps", save_steps=3).train()
    trainer(other, adamw(other)).train()
    trainer(resumed, adamw(resumed)).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert_equal(model, other)
    assert_equal(resumed, other)
    for net, flat in zip((model, resumed), flats, strict=True):
        assert all(within(param, flat.weights) for param in net.parameters())


class Count(TrainerCallback):
    """Reads `stats` and counts by itself."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        stats = optimizer.optimizer.stats
        self.seen.append((int(stats.nonzeros.sum()), sum(int(p.count_nonzero()) for p in model.parameters())))


def test_stats_in_a_callback() -> None:
    model, count = gpt2(), Count()
    trainer(model, adamw(model, stats=True), callbacks=[count]).train()
    assert len(count.seen) == 6 and all(said == counted for said, counted in count.seen)


def test_the_weights_of_its_layers_are_penalised() -> None:
    small = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    gpt = gpt2()
    vit = ViTModel(ViTConfig(**small, image_size=8, patch_size=4))
    llama = LlamaForCausalLM(LlamaConfig(**small, vocab_size=11))
    for model, left_out in (
        (gpt, ("wte.", "wpe.", "ln_", "bias")),
        (vit, ("cls_token", "position_embeddings", "layernorm", "bias")),
        (llama, ("embed_tokens", "norm")),
    ):
        expected = [name for name, _ in model.named_parameters() if not any(part in name for part in left_out)]
        name_of = {id(param): name for name, param in model.named_parameters()}
        chosen, _ = regkernels.param_groups(model)
        assert [name_of[id(param)] for param in chosen["params"]] == expected and len(expected) >= 4
