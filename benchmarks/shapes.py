"""Lists shapes of parameters, as data: real models' and lists of equal tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

Shapes = list[tuple[int, ...]]


def gpt2(width: int, layers: int) -> Shapes:
    """Lists those of openai-community/gpt2 and its larger siblings as in Hugging Face transformers, output tied to the embedding."""
    vocabulary, context = 50257, 1024
    block: Shapes = [
        *2 * [(width,)],
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *2 * [(width,)],
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(vocabulary, width), (context, width), *layers * block, (width,), (width,)]


def nanogpt() -> Shapes:
    """Lists those of the character-level model of karpathy/nanoGPT, config/train_shakespeare_char.py: no biases, output tied."""
    width, layers, vocabulary, context = 384, 6, 65, 256
    block: Shapes = [(width,), (3 * width, width), (width, width), (width,), (4 * width, width), (width, 4 * width)]
    return [(vocabulary, width), (context, width), *layers * block, (width,)]


def llama_1b() -> Shapes:
    """Lists those of meta-llama/Llama-3.2-1B, by its config.json, output tied to the embedding."""
    width, layers, vocabulary, hidden, keys = 2048, 16, 128256, 8192, 512
    attention: Shapes = [(width, width), (keys, width), (keys, width), (width, width)]
    perceptron: Shapes = [(hidden, width), (hidden, width), (width, hidden)]
    return [(vocabulary, width), *layers * [*attention, *perceptron, (width,), (width,)], (width,)]


def resnet50() -> Shapes:
    """Lists those of torchvision.models.resnet50. Running means and variances of its norms are no parameters."""

    def convolution(outputs: int, inputs: int, size: int) -> Shapes:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    of, inputs = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            of += convolution(width, inputs, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                of += convolution(4 * width, inputs, 1)
            inputs = 4 * width
    return [*of, (1000, inputs), (1000,)]


def vit_b() -> Shapes:
    """Lists those of torchvision.models.vit_b_16."""
    width, layers, patch, places, classes = 768, 12, 16, 1 + (224 // 16) ** 2, 1000
    block: Shapes = [
        *2 * [(width,)],
        *[(3 * width, width), (3 * width,), (width, width), (width,)],
        *2 * [(width,)],
        *[(4 * width, width), (4 * width,), (width, 4 * width), (width,)],
    ]
    ends: Shapes = [(1, 1, width), (width, 3, patch, patch), (width,), (1, places, width)]
    return [*ends, *layers * block, (width,), (width,), (classes, width), (classes,)]


def equal(count: int, elements: int) -> Shapes:
    return count * [(elements,)]


LISTS: dict[str, Callable[[], Shapes]] = {
    "nanogpt": nanogpt,
    "resnet50": resnet50,
    "vit-b": vit_b,
    "gpt2-small": partial(gpt2, 768, 12),
    "gpt2-medium": partial(gpt2, 1024, 24),
    "llama-1b": llama_1b,
    "2^26": partial(equal, 1, 2**26),
    "1000x1000": partial(equal, 1000, 1000),
    "2000x64": partial(equal, 2000, 64),
    "10000x64": partial(equal, 10000, 64),
}


def elements(of: Shapes) -> int:
    return sum(map(math.prod, of))


def short(number: float) -> str:
    """Writes three digits and a unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def describe(name: str) -> str:
    """Returns a list's name with what it amounts to."""
    of = LISTS[name]()
    return f"{name}, {len(of):,} tensors, {short(elements(of))}"
