"""Says what compaction did, and what it left and why."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from torch import nn

from regkernels.structure import files, table
from regkernels.structure.changes import Changes


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
    side: Literal["outputs", "inputs", "rows", "columns"]
    """Rows and columns, slices along dimension 0 and 1 of a weight, of layers that are not known."""
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
    changes: Changes
    """What `save` writes beside the weights."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``model`` as it is now, trained further or not, to a safetensors file; `regkernels.load_compacted` reads it.

        The file has the weights and buffers that a state dict has, and in its metadata, as JSON, the shapes before and after and what
        attributes of layers have become. It is written beside ``path`` and renamed when it is complete, so that there is always a
        whole file, the old one or the new one.

        Raises:
            ValueError: for a ``model`` whose names or shapes have changed since `regkernels.compact` returned it.
            TypeError: for what is spread over ranks, or tensors that safetensors cannot hold.
            IsADirectoryError, FileNotFoundError: for a path that is a directory, or in none.
            ImportError: without safetensors.
        """
        files.save(self.model, self.changes, path)

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
