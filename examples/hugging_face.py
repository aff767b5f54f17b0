"""Trains small GPT-2, Llama and BERT models of transformers with group lasso on hidden units and heads, and compacts them.

The task is handwritten digits, read as 16 words: each is the mean of 2 x 2 pixels. Nothing is downloaded. It needs
`pip install transformers safetensors scikit-learn matplotlib`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import regkernels as rk

STRENGTHS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3)
WIDTH, HEADS, UNITS, LAYERS = 32, 4, 128, 2
WORDS = 18  # 0 to 16, and one for padding that is never used
TRAINED_ON = 1347


class Groups(NamedTuple):
    """Names, by the end of a parameter's name, the weights whose groups are units or heads, and the dimension these lie along."""

    units: tuple[str, int]
    heads: tuple[str, int]


GROUPS = {
    "GPT-2": Groups(("mlp.c_fc.weight", 1), ("attn.c_proj.weight", 0)),
    "Llama": Groups(("mlp.gate_proj.weight", 0), ("self_attn.o_proj.weight", 1)),
    "BERT": Groups(("intermediate.dense.weight", 0), ("attention.output.dense.weight", 1)),
}


class Point(NamedTuple):
    """Describes one training; ``difference`` is that of the outputs before and after compaction, relative to the largest."""

    model: str
    strength: float
    accuracy: float
    compacted_accuracy: float
    units: int
    heads: int
    parameters_before: int
    parameters: int
    difference: float


def make(name: str) -> nn.Module:
    common: dict[str, Any] = {"vocab_size": WORDS, "num_labels": 10, "pad_token_id": WORDS - 1}
    common["initializer_range"] = 0.1  # not 0.02, which is for wider models
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": UNITS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    ends = {"bos_token_id": None, "eos_token_id": None}
    model: nn.Module
    if name == "GPT-2":
        model = GPT2ForSequenceClassification(
            GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=UNITS, n_positions=16, **ends, **common)
        )
    elif name == "Llama":
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, **ends, **common))
    else:
        model = BertForSequenceClassification(BertConfig(max_position_embeddings=16, **sizes, **common))
    return model


def param_groups(name: str, model: nn.Module, strength: float) -> list[dict[str, Any]]:
    units, heads = GROUPS[name]
    of_units = [p for key, p in model.named_parameters() if key.endswith(units[0])]
    of_heads = [p for key, p in model.named_parameters() if key.endswith(heads[0])]
    chosen = {id(p) for p in (*of_units, *of_heads)}
    return [
        {"params": of_units, "group_l1": strength, "group_dim": units[1]},
        {"params": of_heads, "group_l1": strength, "group_dim": heads[1], "group_size": WIDTH // HEADS},
        {"params": [p for p in model.parameters() if id(p) not in chosen]},
    ]


def data() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    words = torch.tensor(images).reshape(-1, 4, 2, 4, 2).mean((2, 4)).round().long().flatten(1)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    return words[order], torch.tensor(labels)[order]


def train(name: str, strength: float, words: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = make(name)
    optimizer = rk.optim.AdamW(param_groups(name, model, strength), lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(words)).split(64):
            loss = nn.functional.cross_entropy(model(words[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, words: Tensor) -> Tensor:
    made: Tensor = model(words).logits
    return made


def measure(name: str, strength: float, epochs: int) -> Point:
    words, labels = data()
    model = train(name, strength, words[:TRAINED_ON], labels[:TRAINED_ON], epochs)
    small = rk.compact(model, eval_only=True)
    unseen, right = words[TRAINED_ON:], labels[TRAINED_ON:]
    before, after = answers(model, unseen), answers(small.model, unseen)
    units, heads = GROUPS[name]
    params = dict(small.model.named_parameters())
    return Point(
        name,
        strength,
        float((before.argmax(1) == right).float().mean()),
        float((after.argmax(1) == right).float().mean()),
        sum(p.shape[units[1]] for key, p in params.items() if key.endswith(units[0])),
        sum(p.shape[heads[1]] for key, p in params.items() if key.endswith(heads[0])) // (WIDTH // HEADS),
        small.parameters_before,
        small.parameters,
        float((before - after).abs().max() / before.abs().max()),
    )


def table(points: Sequence[Point]) -> Iterator[str]:
    """Writes the table of the page."""
    yield "| model | group_l1 | test accuracy, % | hidden units | heads | parameters |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for p in points:
        cells = f"{p.strength:g}", f"{100 * p.compacted_accuracy:.1f}", str(p.units), str(p.heads), f"{p.parameters:,}"
        yield f"| {p.model} | {' | '.join(cells)} |"


def draw(points: Sequence[Point], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="parameters after compaction", ylabel="test accuracy, %")
    # Of Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
    for name, colour, marker in (("GPT-2", "#0072B2", "o"), ("Llama", "#009E73", "s"), ("BERT", "#D55E00", "^")):
        own = [p for p in points if p.model == name]
        xs, ys = [p.parameters for p in own], [100 * p.compacted_accuracy for p in own]
        axes.plot(xs, ys, color=colour, marker=marker, label=name)
        place = {"Llama": (-14, 7), "BERT": (6, 6)}.get(name, (4, -11))
        for p, x, y in zip(own, xs, ys, strict=True):
            if p.strength >= 1e-3:  # the others lie too close together
                axes.annotate(f"{p.strength:g}", (x, y), place, textcoords="offset points", fontsize=7, color=colour)
    axes.grid(alpha=0.3)
    axes.margins(y=0.1)
    axes.legend(title="numbers: group_l1", loc="lower right")
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch and two strengths, to see it run")
    parser.add_argument("--record", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--picture", type=Path, help="where to draw accuracy against size")
    given = parser.parse_args(arguments)
    strengths, epochs = ((0.0, 1e-2), 1) if given.quick else (STRENGTHS, 15)
    points = [measure(name, strength, epochs) for name in GROUPS for strength in strengths]
    print("\n".join(table(points)))
    if given.record:
        record = {"torch": torch.__version__, "epochs": epochs, "points": [p._asdict() for p in points]}
        given.record.write_text(json.dumps(record, indent=1) + "\n")
    if given.picture:
        draw(points, given.picture)


if __name__ == "__main__":
    main()
