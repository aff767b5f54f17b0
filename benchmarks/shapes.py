"""Shapes of real models' parameters, as data."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]


def gpt2_small() -> Shapes:
    """148 tensors, 124.4 M elements: openai/gpt2 (124M) as in Hugging Face transformers, output tied to the embedding."""
    width, layers, vocabulary, context = 768, 12, 50257, 1024
    block: Shapes = [
        (width,),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        (width,),
        (width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    return [(vocabulary, width), (context, width), *(block * layers), (width,), (width,)]


def llama_1b() -> Shapes:
    """146 tensors, 1.24 B elements: meta-llama/Llama-3.2-1B, by its config.json, output tied to the embedding."""
    width, layers, vocabulary, hidden, keys = 2048, 16, 128256, 8192, 512
    block: Shapes = [
        (width, width),
        (keys, width),
        (keys, width),
        (width, width),
        (hidden, width),
        (hidden, width),
        (width, hidden),
        (width,),
        (width,),
    ]
    return [(vocabulary, width), *(block * layers), (width,)]


def equal(count: int, elements: int) -> Shapes:
    return [(elements,)] * count
