"""Makes the step of parameters whose groups of weights lie on several ranks.

What a group has in common, its second moment and its norm, is known only when all its ranks have added up what they hold.
So the step has three phases, between which sums travel: those of all groups of all such parameters in one message. Nothing is
changed before the last one, so a step that fails on the way has not begun.

The arithmetic is that of `regkernels.reference`, in eager torch on the device of the parameter, also where the other
parameters go through kernels, which leave these alone but for the sums of `stats`. On a CPU that takes about a hundred times
as long as the kernel of groups (AdamW, a million elements a rank: 108 ms against 1.1). The phases compute from the start what
they need again: copies of all states would not fit where parameters are sharded to save memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import reference
from regkernels.distributed.index import Lines
from regkernels.distributed.shards import held, splits_groups
from regkernels.distributed.sums import NOBODY_ANSWERS, Sums
from regkernels.optim.penalty_keys import Method
from regkernels.optim.step.entry import Entry, parameter_name
from regkernels.reference import groups as grouped
from regkernels.reference import step as stepping
from regkernels.table.hyper import Hyper
from regkernels.table.segments import SUMS
from regkernels.table.upload import capturing, placed

Work = tuple[Entry, Hyper]
"""A parameter with a gradient on this rank, and its hyper-parameters."""


class Part(NamedTuple):
    """Says where the numbers of a parameter stand in a message: one for each group, or as many as a group has sums."""

    number: int  # among all such parameters
    param: Any
    name: str
    group: int  # index of its param group
    lines: Lines
    of_class: int  # see `Sums`
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.lines.groups * len(grouped.Squares._fields)


class SplitStep:
    """Makes the step of one parameter with a gradient: everything that is computed from what this rank holds."""

    def __init__(self, part: Part, entry: Entry, hyper: Hyper) -> None:
        self.part, self._entry, self._hyper = part, entry, hyper
        self._dtype = reference.compute_dtype(entry.weight.dtype)
        self._h = hyper.rounded(self._dtype)
        self.skips = bool(self._h.skip)
        self._shared = torch.zeros(part.lines.groups, dtype=self._dtype, device=entry.weight.device)

    def observed(self) -> Tensor:
        """Returns sums of the second moments, as they will be; zeros for a rule that has none."""
        if not reference.RULES[self._entry.rule].step_per_element:
            return self._shared.double()
        seen: list[Tensor] = []

        def look(v: Tensor) -> Tensor:
            seen.append(v)
            return v

        w, g, wide = self._prepared()
        stepping.propose(self._entry.rule, w, g, wide, self._h, look)
        return self.part.lines.sums(seen[0])

    def share(self, sums: Tensor) -> None:
        """Takes what `observed` adds up to."""
        self._shared = (sums / max(self.part.lines.elements, 1)).to(self._dtype)

    def proposed(self) -> Tensor:
        """Returns `reference.groups.Squares` of where the step leads to, one after the other."""
        e, x, _ = self._thresholded()
        return torch.cat([self.part.lines.sums(terms) for terms in grouped.products(e, x)])

    def write(self, sums: Tensor) -> None:
        """Stores weight and states. ``sums``: what `proposed` adds up to."""
        entry, lines, h = self._entry, self.part.lines, self._h
        of_norm = grouped.of_norm(self._hyper, lines.elements, self._dtype)
        squares = grouped.Squares(*sums.view(-1, lines.groups))
        by = grouped.shrinkage(squares, self._step_of_groups(), h, of_norm, self._dtype)
        e, x, wide = self._thresholded()
        z = grouped.shrink(e, x, grouped.Shrinkage(*(lines.spread(number, x) for number in by)))
        for state, value in zip(entry.tensors, wide, strict=True):
            if state.dtype == value.dtype:
                state.copy_(value)
        stepping.store(
            z,
            wide,
            entry.weight,
            entry.tensors,
            self._hyper,
            entry.format.rounding,
            entry.kept,
            entry.stream,
            entry.places,
        )

    def _thresholded(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns what a soft-threshold takes and leaves before groups are shrunk, and the states in the type they are computed
        in."""
        w, g, wide = self._prepared()
        z, s = stepping.propose(self._entry.rule, w, g, wide, self._h, self._spread_shared)
        return *grouped.thresholded(z, s, self._h), wide

    def _prepared(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns weight, gradient and copies of the states, in the type they are computed in."""
        entry = self._entry
        copies = [state.to(self._dtype, copy=True) for state in entry.tensors]
        return stepping.prepare(
            entry.weight, entry.gradient_to_read(), copies, self._h, entry.format.rounding, entry.kept
        )

    def _spread_shared(self, v: Tensor) -> Tensor:
        return self.part.lines.spread(self._shared, v)

    def _step_of_groups(self) -> Tensor | float:
        """Returns the step of each group: a function of the second moment alone, so states and gradient may be anything."""
        rule, shared = reference.RULES[self._entry.rule], self._shared
        return rule.apply(
            torch.zeros_like(shared), [torch.zeros_like(shared) for _ in rule.state_names], self._h, lambda _: shared
        )[1]


class SplitGroups:
    """Updates all parameters of an optimizer whose groups lie on several ranks; rebuilt with its plans. False without any.

    Whether a parameter has a gradient must be the same on all ranks that hold something of it: a group is updated as a whole. A
    rank whose part is empty takes part with or without one.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]] = (), methods: Sequence[Method] = ()) -> None:
        split = [
            (index, position, param)
            for index, (group, method) in enumerate(zip(groups, methods, strict=True))
            for position, param in enumerate(group["params"])
            if is_split(param, method)
        ]
        self._sums = Sums.of(param for _, _, param in split)
        self._parts: list[Part] = []
        # Of a message. Behind them stand for each part on how many ranks it has a gradient, and on how many that hold something
        # of it, it has none: side by side, as the host reads them.
        self._columns = 0
        for number, (index, position, param) in enumerate(split):  # in an order that all ranks have in common
            lines = Lines.of(param, methods[index].dim, methods[index].size)
            name = parameter_name(groups[index], index, position)
            self._parts.append(Part(number, param, name, index, lines, self._sums.class_of(param), self._columns))
            self._columns = self._parts[-1].end
        self._has_metric = any(reference.RULES[methods[part.group].rule].step_per_element for part in self._parts)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def step(self, work: Iterable[Work]) -> None:
        """Updates what ``work`` has of these parameters. On an accelerator the host waits for it: once, to know who has gradients.

        Takes two messages, one where no rule has second moments; every rank sends them, whether or not it has gradients.

        Raises:
            ValueError: on every rank, where only some ranks have the gradient of a parameter. Nothing is changed then.
        """
        if capturing():
            raise RuntimeError(
                f"{self._parts[0].name} has groups that lie on several ranks, whose step cannot be captured into a CUDA graph; "
                "call step() outside of the graph"
            )
        parts = {id(part.param): part for part in self._parts}
        steps = [SplitStep(parts[id(entry.param)], entry, hyper) for entry, hyper in work]
        active = [step for step in steps if not step.skips]
        if self._has_metric:
            sums = self._added({step.part.begin: step.observed for step in active})
            self._check_gradients(sums)
            for step in active:
                step.share(sums[step.part.begin : step.part.begin + step.part.lines.groups])
        sums = self._added({step.part.begin: step.proposed for step in active})
        if not self._has_metric:
            self._check_gradients(sums)
        for step in active:
            step.write(sums[step.part.begin : step.part.end])

    def zero_groups(self, sums: Sums, groups: int) -> Tensor:
        """Counts the groups of parameters with gradients that are all zeros on all of their ranks: a table of sums as a backend
        returns it, in which one rank counts them for all. One message.

        ``sums``: what the table will be added up by. ``groups``: number of param groups of the optimizer.
        """
        try:
            nonzeros = self._added({part.begin: partial(_nonzeros, part) for part in self._parts})
        except RuntimeError as error:
            raise RuntimeError(
                f"the groups of zeros that stats counts could not be counted over all ranks: {NOBODY_ANSWERS}. This rank has "
                "updated its weights already; start again from the last checkpoint"
            ) from error
        table = torch.zeros(sums.classes * groups, len(SUMS), dtype=torch.float64, device=nonzeros.device)
        for part in self._parts:
            if part.lines.elements and _is_first(part.param):
                of_groups = nonzeros[part.begin : part.begin + part.lines.groups]
                zeros = (of_groups == 0).sum() * (nonzeros[self._columns + 2 * part.number] > 0)
                table[sums.total_of(part.param, part.group, groups), SUMS.index("zero_groups")] += zeros
        return table

    def _added(self, own: Mapping[int, Callable[[], Tensor]]) -> Tensor:
        """Adds up, over all ranks, what each part that has something to say says about its groups. One message."""
        device = held(self._parts[0].param).device
        table = torch.zeros(self._sums.classes, self._columns, dtype=torch.float64, device=device)
        has_gradient = [[0.0] * (2 * len(self._parts)) for _ in range(self._sums.classes)]
        for part in self._parts:
            if part.begin in own:
                numbers = own[part.begin]()
                table[part.of_class, part.begin : part.begin + len(numbers)] = numbers
            if part.param.grad is not None:
                has_gradient[part.of_class][2 * part.number] = 1.0
            elif held(part.param).numel():
                has_gradient[part.of_class][2 * part.number + 1] = 1.0
        return self._sums.add(torch.cat([table, placed(has_gradient, device)], 1)).get()

    def _check_gradients(self, sums: Tensor) -> None:
        """Raises where only some of the ranks that hold a parameter have its gradient; all of them see that."""
        counts = sums[self._columns :].tolist()
        for part, some, others in zip(self._parts, counts[::2], counts[1::2], strict=True):
            if some and others:
                raise ValueError(
                    f"{part.name} has a gradient on {some:g} of the ranks that hold it and none on {others:g}, and its groups lie "
                    "on several ranks: they can only be updated as a whole. Let the parameter take part in the loss on every "
                    "rank, if only times 0, or on none. Nothing was updated"
                )


def is_split(param: Any, method: Method) -> bool:
    """Tells whether groups of a parameter may lie on several ranks, so that no rank can update them alone."""
    return method.penalty == "group" and splits_groups(param, method.dim, method.size)


def _nonzeros(part: Part) -> Tensor:
    return part.lines.sums(held(part.param).detach() != 0)


def _is_first(param: Any) -> bool:
    """Tells whether this rank is the one that counts for all that a parameter is sharded over."""
    coordinate = param.device_mesh.get_coordinate()
    return all(at == 0 or placement.is_replicate() for at, placement in zip(coordinate, param.placements, strict=True))
