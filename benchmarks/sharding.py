"""Computes what a rank holds of a model that is spread over many, and what FSDP2 sends for it: by formula, without a process group.

tests/distributed/test_projection.py compares every formula with torch's own engine, on groups of up to 1024 ranks that only pretend
to communicate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Weight(NamedTuple):
    """Describes a parameter: its shape, and the dimension that tensor parallelism cuts (None: each of its ranks holds all of it)."""

    shape: tuple[int, ...]
    cut: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    """Lists parameters, as FSDP is given them: a unit per block, whose parameters travel together, and one for the rest."""

    name: str
    block: tuple[Weight, ...]
    blocks: int
    rest: tuple[Weight, ...]

    @property
    def units(self) -> Iterator[tuple[int, tuple[Weight, ...]]]:
        """Yields how many there are of each, and what is in it."""
        yield self.blocks, self.block
        yield 1, self.rest

    @property
    def elements(self) -> int:
        return sum(count * sum(weight.elements for weight in unit) for count, unit in self.units)


def decoder(name: str, width: int, blocks: int, hidden: int, keys: int, vocabulary: int = 128_256) -> Model:
    """Describes a dense decoder built as Llama 3 is (grouped keys of width ``keys``, gated MLP, no biases), output not tied."""
    norm = Weight((width,))
    rows, columns = 0, 1  # of (outputs, inputs): cut by outputs first, then by inputs, so that only their sum is sent
    attention = (Weight((width, width), rows), *2 * (Weight((keys, width), rows),), Weight((width, width), columns))
    perceptron = (*2 * (Weight((hidden, width), rows),), Weight((width, hidden), columns))
    ends = (*2 * (Weight((vocabulary, width), rows),), norm)
    return Model(name, (*attention, *perceptron, norm, norm), blocks, ends)


MODELS = {
    model.name: model
    for model in (
        decoder("1 B", 2048, 8, 8192, 512),
        decoder("10 B", 4096, 42, 14336, 1024),
        decoder("100 B", 9216, 90, 32256, 1024),
        decoder("1 T", 24576, 130, 86016, 2048),
    )
}


@dataclass(frozen=True)
class Layout:
    """Describes a mesh of ``replicas`` x ``shards`` x ``tensor`` ranks: HSDP's copies, FSDP's parts, tensor parallelism's parts."""

    shards: int
    replicas: int = 1
    tensor: int = 1

    @property
    def ranks(self) -> int:
        return self.replicas * self.shards * self.tensor

    def __str__(self) -> str:
        if self.tensor > 1:
            return f"FSDP {self.shards} x TP {self.tensor}"
        return f"HSDP {self.replicas} x {self.shards}" if self.replicas > 1 else f"FSDP {self.shards}"

    def held(self, weight: Weight, shard: int = 0, part: int = 0) -> int:
        """Counts elements of ``weight`` on the rank ``shard`` of FSDP's and ``part`` of tensor parallelism's ranks.

        Dimensions are cut into pieces of equal length as torch.chunk cuts them, so that the last ranks get less, or nothing:
        tensor parallelism cuts first, then FSDP the first dimension of what is left.
        """
        shape = list(weight.shape)
        if weight.cut is not None:
            shape[weight.cut] = chunk(shape[weight.cut], self.tensor, part)
        shape[0] = chunk(shape[0], self.shards, shard)
        return math.prod(shape)

    def fullest(self, model: Model) -> int:
        """Counts elements on the rank that holds most, which is the first."""
        return sum(count * sum(map(self.held, unit)) for count, unit in model.units)


def chunk(size: int, pieces: int, index: int) -> int:
    length = -(-size // pieces)
    return max(0, min(length, size - index * length))


class Traffic(NamedTuple):
    """Counts what one rank does in one step: collectives, and bytes that it receives (as many as it sends)."""

    messages: int
    bytes: float

    def __add__(self, other: object) -> Traffic:
        if not isinstance(other, Traffic):
            return NotImplemented
        return Traffic(self.messages + other.messages, self.bytes + other.bytes)


def all_gather(own: int, ranks: int) -> Traffic:
    """Counts an all-gather. ``own``: bytes of each rank, which all others receive."""
    return Traffic(1, own * (ranks - 1)) if ranks > 1 else Traffic(0, 0)


def all_reduce(size: int, ranks: int) -> Traffic:
    """Counts an all-reduce. ``size``: bytes of the sum. In a ring each rank receives all but its own piece twice: to sum it, and to have it."""
    return Traffic(1, 2 * size * (ranks - 1) / ranks) if ranks > 1 else Traffic(0, 0)


def fsdp(model: Model, layout: Layout, weight_bytes: int, gradient_bytes: int = 4) -> Traffic:
    """Counts what FSDP2 sends for one forward and backward pass with its defaults, whatever the optimizer is.

    Each block's weights are gathered twice, forward and backward, those of the rest once (they stay until their backward);
    gradients are scattered to who holds the weights, once, and where there are replicas, summed over them. Parts are padded to
    that of the first rank. ``gradient_bytes``: of an element when gradients are summed (``reduce_dtype``).

    Tensor parallelism's own messages are activations, which depend on the batch, and are not in it.
    """
    total = Traffic(0, 0)
    for (count, unit), gathers in zip(model.units, (2, 1), strict=True):
        own = sum(map(layout.held, unit))
        parts = [all_gather(own * weight_bytes, layout.shards)] * gathers
        parts += [all_gather(own * gradient_bytes, layout.shards)]  # reduce-scatter: the same bytes the other way
        parts += [all_reduce(own * gradient_bytes, layout.replicas)]
        total += times(count, combined(parts))
    return total


def combined(parts: Iterable[Traffic]) -> Traffic:
    return sum(parts, start=Traffic(0, 0))


def times(count: int, traffic: Traffic) -> Traffic:
    return Traffic(count * traffic.messages, count * traffic.bytes)
