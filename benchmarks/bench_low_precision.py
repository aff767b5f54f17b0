"""What do narrow weights and states cost? A step in each format, and of the rules that have less to move than AdamW.

torch's optimizers keep the states of narrow weights as narrow, rounded to nearest: they move the least, and lose small
updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import building, shapes
from benchmarks.building import FOREACH, FUSED, OURS
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import PEERS, Step, Task
from benchmarks.peers.check import checked
from regkernels import optim
from regkernels.table.formats import Precision


class Format(NamedTuple):
    """Names an optimizer (the class of that name here, and in torch) with weights and states as they are stored."""

    optimizer: str
    states: int  # of the rule, per weight
    dtype: torch.dtype
    rounding: str = "nearest"
    state_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        rounding = "" if self.dtype.itemsize >= 4 else f" {self.rounding}"
        states = "" if self.state_dtype is None else f", states in {building.dtype_name(self.state_dtype)}"
        return f"{self.optimizer.lower()}, {building.dtype_name(self.dtype)}{rounding}{states}"

    @property
    def bytes_of_states(self) -> int:
        """Counts bytes per weight, and of what is kept beside it."""
        form = Precision(self.rounding, self.state_dtype).of(torch.empty(0, dtype=self.dtype))
        return self.states * form.states.itemsize + (form.dtype_of(form.kept).itemsize if form.kept else 0)


HALF = torch.bfloat16
FORMATS = (
    *(Format("AdamW", 2, HALF, rounding) for rounding in ("nearest", "stochastic", "remainder", "master")),
    Format("AdamW", 2, HALF, "stochastic", HALF),
    Format("AdamW", 2, torch.float16, "stochastic"),
    Format("AdamW", 2, torch.float32),
    Format("AdamW", 2, torch.float32, state_dtype=HALF),
    *(Format(rule, 1, torch.float32) for rule in ("Lion", "RMSprop", "Adagrad")),
)


def ours(form: Format, params: Sequence[nn.Parameter]) -> Step:
    make = getattr(optim, form.optimizer)
    return make(params, lr=1e-3, param_rounding=form.rounding, state_dtype=form.state_dtype).step


def theirs(form: Format, params: Sequence[nn.Parameter], **how: bool) -> Step:
    return getattr(torch.optim, form.optimizer)(params, lr=1e-3, **how).step


MAKERS = {FUSED: partial(theirs, fused=True), FOREACH: partial(theirs, foreach=True), OURS: ours}
PEERS_OF = {"AdamW": (FUSED, OURS), "Lion": (OURS,), "RMSprop": (FOREACH, OURS), "Adagrad": (FOREACH, OURS)}
"""torch has no Lion, and no fused RMSprop."""


def cases(scope: Scope) -> Iterator[Case]:
    for name in building.lists(scope, ["2^26"], ["nanogpt"]):
        for form in FORMATS:
            yield _case(form, name, scope)


def _case(form: Format, name: str, scope: Scope) -> Case:
    of, names = shapes.LISTS[name](), building.taking_part(PEERS_OF[form.optimizer], scope)
    elements, task = shapes.elements(of), Task(form.optimizer.lower())
    states = {peer: form.bytes_of_states if peer == OURS else form.states * form.dtype.itemsize for peer in names}
    notes: dict[str, str] = {}

    def make(peer: str) -> Contender:
        if peer == FUSED:
            notes[peer] = building.verified(checked(PEERS[peer], task, form.dtype, scope.device))
        params = building.parameters(of, scope, form.dtype)
        building.give(params, building.gradients(of, scope, form.dtype))
        step = MAKERS[peer](form, params)
        building.warm_up(step)
        moved = building.bytes_of_step(task, elements, form.dtype, states[peer])
        return Contender(step, bytes_moved=moved, keep=params)

    return Case(
        "low_precision",
        f"{form}: {shapes.describe(name)}",
        {peer: partial(make, peer) for peer in names},
        bytes_moved=building.bytes_of_step(task, elements, form.dtype, form.bytes_of_states),
        # foreach has a few more of a parameter's size in between.
        memory=elements * sum(2 * form.dtype.itemsize + states[peer] + 3 * form.dtype.itemsize for peer in names),
        shapes=name,
        notes=notes,
    )


def test_low_precision(benchmark: Any, timed: dict[str, Any]) -> None:
    benchmark.pedantic(**timed)
