"""Says what a peer is, and what it may be asked to compute."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 1e-2
"""AdamW's own, decoupled; 0 where the task has an l2: who writes the penalty down does not decay in addition."""


class Task(NamedTuple):
    """Says what a step is to compute. ``l1`` and ``l2`` are strengths of penalties (units of the loss, no 1/2 before l2)."""

    rule: str  # "sgd", "momentum" (0.9) or "adamw"
    l1: float = 0.0
    l2: float = 0.0
    max_grad_norm: float | None = None
    stats: bool = False  # the penalties' values and the number of zeros, as one would log them in each step
    lr: float = 1e-3

    @property
    def momentum(self) -> float:
        """Returns the factor of SGD's momentum, 0 without."""
        return MOMENTUM if self.rule == "momentum" else 0.0


class Sums(NamedTuple):
    """Holds what a step returns if it is to log: of all weights, as tensors, so that nobody has to wait for a device.

    A recipe has the norms that are in its loss, of the weights before the step; None where the loss has no such term.
    """

    l1_norm: Tensor | None
    squared_norm: Tensor | None
    nonzeros: Tensor


Step = Callable[[], object]
"""Returns `Sums` for a task with ``stats``."""


class Unsupported(Exception):
    """Says why a peer does not offer a task."""


@dataclass(frozen=True)
class Peer:
    """Describes an implementation that may be there or not.

    ``find`` returns the version of what it comes from and raises where that is missing. ``make`` returns a step for
    parameters that have gradients; it raises `Unsupported`. ``penalty`` says how it treats penalties, see
    `benchmarks.peers.mathematics`: those are different computations by design, so each is checked against its own.
    """

    name: str
    find: Callable[[], str]
    make: Callable[[Task, Sequence[nn.Parameter]], Step]
    penalty: str = "coupled"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what libraries report about themselves while they are imported: it does not belong into our tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
