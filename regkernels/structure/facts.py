"""Keeps what is found about a network on the way through its graph; rules for functions and modules read and write it here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn

from regkernels.structure.layers import Weights
from regkernels.structure.layouts import Fixed, Layout, Number, Units, Value


@dataclasses.dataclass(frozen=True)
class Reading:
    """Tells what a layer with weights reads: per input its unit, and what is constant there."""

    units: Tensor
    known: Tensor
    value: Tensor
    unread: Tensor
    """Inputs with zero weights only."""
    pads: bool


class Facts:
    """Holds ``outputs``, ``channels``, ``readings`` and reasons for what is fixed, by the names of modules, and values by nodes.

    Args:
        model: the model as it is now; its modules are looked up by the names in the graph.
        units: shared by the walks for evaluation and training, so that ties and pins of both count.
        training: which modules are in training mode.
        locked: why a module is to be left alone, by name; None if it is not.
        weights: what other walks have found of weights, and a place for what this one finds.
        ends: what to call the input and the output.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        training: Callable[[nn.Module], bool],
        locked: Callable[[str], str | None],
        weights: dict[str, Weights],
        ends: tuple[str, str] = ("the model's input", "the model's output"),
    ) -> None:
        self.model = model
        self.units = units
        self.training = training
        self.locked = locked
        self.weights = weights
        self.ends = ends
        self.values: dict[fx.Node, Value] = {}
        self.outputs: dict[str, Tensor] = {}
        self.channels: dict[str, Tensor] = {}
        self.scales: dict[str, tuple[Tensor, int]] = {}
        """By the name of a tensor that forward reads itself: its units, and the dimension along which they lie."""
        self.heads: dict[str, int] = {}
        """By the name of an attention module, the length of a head."""
        self.uneven: dict[str, list[int]] = {}
        """By the name of an output projection, inputs of heads that are not read, but share a key with more others than elsewhere."""
        self.readings: dict[str, Reading] = {}
        self.fixed_inputs: dict[str, str] = {}
        self.fixed_outputs: dict[str, str] = {}

    def value(self, argument: Any) -> Value:
        """Looks up what is known of an argument of a node."""
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (bool, int, float, complex)):
            return Number(argument)
        return Fixed(f"it is no tensor: {argument!r}")

    def slots(self) -> dict[tuple[str, str], Tensor]:
        """Returns units by layer and side: "inputs", "outputs", or "channels" of a layer that has the same ones on both."""
        slots = {(name, "inputs"): reading.units for name, reading in self.readings.items()}
        slots |= {(name, "outputs"): units for name, units in self.outputs.items()}
        slots |= {(name, "scale"): units for name, (units, _) in self.scales.items()}
        return slots | {(name, "channels"): units for name, units in self.channels.items()}

    def stop(self, x: Layout, reason: str) -> Fixed:
        """Records that the channels of ``x`` must stay."""
        return self.stop_all((x,), reason)

    def stop_all(self, xs: Iterable[Layout], reason: str) -> Fixed:
        """Records that the channels of all ``xs`` must stay."""
        for x in xs:
            self.units.pin(x.units, reason)
        return Fixed(reason)
