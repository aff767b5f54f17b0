"""Says what compaction did, and what it left and why."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from torch import nn

from regkernels.structure import saving, table
from regkernels.structure.plans import Plan


class Shrunk(NamedTuple):
    """Describes a layer that has become smaller. Numbers of channels are those in the original model."""

    name: str
    removed_outputs: tuple[int, ...]
    """Rows, filters, or the channels of a normalisation."""
    removed_inputs: tuple[int, ...]
    """Columns; for a layer after flattened channels these are several per channel."""
    outputs: int
    """How many are left."""
    inputs: int | None
    """How many are left; None for normalisations and embeddings."""
    parameters_before: int
    parameters: int


class Kept(NamedTuple):
    """Describes zeros that could not be removed. Numbers of channels are those in the original model."""

    name: str
    side: Literal["outputs", "inputs"]
    channels: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.channels[:6])) + (", ..." if len(self.channels) > 6 else "")
        return f"{self.name or 'the model'}: {len(self.channels)} {self.side} ({shown}): {self.reason}"


class Compacted(NamedTuple):
    """Holds what `regkernels.compact` returns; prints as a table of the layers that became smaller and a list of what was kept."""

    model: nn.Module
    """The smaller model, of the same class."""
    removed: tuple[Shrunk, ...]
    """One entry per layer that became smaller, in the model's order."""
    kept: tuple[Kept, ...]
    """Zero rows and columns, and channels nobody reads, that had to stay."""
    parameters_before: int
    """Elements of all parameters of the original."""
    parameters: int
    """Elements of all parameters of ``model``."""
    plan: Plan
    """How ``model`` differs from the original, which `load_compacted` needs."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the smaller model to ``path``, a safetensors file, for `regkernels.load_compacted`.

        The weights are those that ``model`` has now; it may have been trained on.

        Raises:
            ImportError: without safetensors, the extra ``regkernels[compact]``.
            TypeError: where the state dict has more than tensors.
        """
        saving.save(path, self.model, self.plan)

    def __str__(self) -> str:
        share = 100 * self.parameters / self.parameters_before if self.parameters_before else 100.0
        lines = [f"{self.parameters_before:,} -> {self.parameters:,} parameters ({share:.1f} %)"]
        if self.removed:
            rows = [_cells(layer) for layer in self.removed]
            lines.append(table.as_text(("layer", "outputs", "inputs", "parameters"), rows))
        if self.kept:
            lines.append("kept, although zero or read by nobody:")
            lines += [f"  {kept}" for kept in self.kept]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def _cells(layer: Shrunk) -> tuple[str, ...]:
    def change(left: int, removed: int) -> str:
        return f"{left + removed:,} -> {left:,}" if removed else f"{left:,}"

    return (
        layer.name or "the model",
        change(layer.outputs, len(layer.removed_outputs)),
        "" if layer.inputs is None else change(layer.inputs, len(layer.removed_inputs)),
        change(layer.parameters, layer.parameters_before - layer.parameters),
    )
