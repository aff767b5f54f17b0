"""Knows from the loss what targets are: classes, two classes, or numbers."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from regkernels.selection.losses import check_function, is_cross_entropy, without_arguments


class Targets(Enum):
    """Says what a module's outputs and the targets are."""

    CLASSES = "classes"  # an output per class, whose softmax are probabilities
    TWO_CLASSES = "two classes"  # one output, whose sigmoid is the second one's probability
    NUMBERS = "numbers"  # outputs like targets

    @property
    def are_labels(self) -> bool:
        """Tells whether the loss classifies."""
        return self is not Targets.NUMBERS

    def encoded(self, y: Any) -> tuple[Tensor, Any]:
        """Returns targets as the loss takes them, and the classes in the order of their numbers; None for numbers.

        Raises:
            ValueError: for one class, or more classes than the loss can tell apart.
        """
        if not self.are_labels:
            return torch.tensor(numpy.asarray(y, dtype=numpy.float64)), None
        classes, numbers = numpy.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must have two classes or more, got one class: {classes[0]}")
        if self is Targets.CLASSES:
            return torch.tensor(numbers), classes
        if len(classes) > 2:
            raise ValueError(
                "Only binary classification is supported. The loss binary_cross_entropy_with_logits is for two classes, "
                f"y has {len(classes)}: pass cross_entropy, and a module with {len(classes)} outputs"
            )
        return torch.tensor(numbers, dtype=torch.float64), classes

    def shaped(self, targets: Tensor, outputs: Tensor, count: int) -> Tensor:
        """Returns targets in the shape that the loss takes with a module's outputs.

        Args:
            targets: of all rows.
            outputs: of some rows.
            count: of classes; 0 for numbers.

        Raises:
            ValueError: for outputs that do not go with the targets: the loss would compare each with each, or fail.
        """
        own = tuple(outputs.shape[1:])
        if self is Targets.CLASSES:
            if own != (count,):
                raise ValueError(
                    f"module must have an output for each of the {count} classes of y, got the shape {own} per row"
                )
            return targets
        width = tuple(targets.shape[1:])
        if own != width and {own, width} != {(), (1,)}:
            raise ValueError(
                f"module must have outputs like y, of the shape {width} per row, got {own}: change its last layer; if y are classes, pass "
                f"cross_entropy or binary_cross_entropy_with_logits itself or functools.partial of it, as other losses learn numbers"
            )
        return targets.reshape(-1, *own)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Returns the probability of each class, (rows, classes)."""
        if self is Targets.CLASSES:
            return outputs.softmax(1)
        second = outputs.reshape(-1)
        return torch.stack([(-second).sigmoid(), second.sigmoid()], 1)


def targets_of(loss: Any) -> Targets:
    """Returns what the targets of a loss are: of labels for torch's cross entropies, their modules and partial calls.

    Raises:
        TypeError: for what cannot be called, or a class where an instance is meant.
    """
    check_function(loss)
    if is_cross_entropy(loss):
        return Targets.CLASSES
    named = without_arguments(loss)
    if named is functional.binary_cross_entropy_with_logits or isinstance(named, nn.BCEWithLogitsLoss):
        return Targets.TWO_CLASSES
    return Targets.NUMBERS
