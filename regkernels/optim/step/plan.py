"""Plans a step: which parameters have gradients, where their memory is, which segments that makes.

There is one plan per device.

A plan is built from the param groups and the state dictionary, and kept as long as `Plan.refresh` finds every parameter,
gradient and state where it was. Nothing is cached by the identity of a gradient or of a wrapper; what counts is the
address, type, shape and strides that the kernels are going to use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, validation
from regkernels.backends import extension
from regkernels.distributed import shards
from regkernels.distributed.sums import Sums
from regkernels.optim import penalty_keys
from regkernels.optim.options import Options
from regkernels.optim.penalty_keys import Method
from regkernels.optim.step import counts, graphs, states
from regkernels.optim.step.active import Active
from regkernels.optim.step.entries import Entries
from regkernels.optim.step.entry import Entry, table_of
from regkernels.optim.step.l1_weights import L1Weights
from regkernels.table import segments
from regkernels.table.batch import Batch, Memory, Operands
from regkernels.table.hyper import Hyper, Scalar

State = MutableMapping[Any, Any]


class Plan:
    """Keeps entries, the table made of them, and what takes part in the next step.

    Attributes:
        entries: parameters with states, whether or not they have a gradient at present.
        active: those that the next step updates; there once the plan is built.
        draws: whether a step needs random numbers.
        may_skip: whether only the device knows that a step is left out.
        totals: how many totals a table of sums has: for each class (see `regkernels.distributed.sums`) one per param group of
            the optimizer, those on other devices included.
    """

    active: Active

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        methods: Sequence[Method],
        options: Options,
        state: State,
        device: torch.device,
        members: Sequence[int],
        before: Plan | None = None,
        sums: Sums | None = None,
    ) -> None:
        """Plans for the param groups ``members``, which are on ``device``. Validates everything and changes nothing; see `build`.

        ``before``: the plan that this one replaces. What a captured graph may still use stays where it is.
        """
        self._before = before
        sums = sums or Sums()
        self.device, self.totals = device, len(groups) * sums.classes
        self._memory = Memory()
        self._members = list(members)
        self._methods = list(methods)
        self._state = state
        self._capturable = _is_capturable(groups[g] for g in members)
        # Whether a step was left out is known on the device only, so that is where steps are counted, too.
        self.may_skip = options.may_skip and backends.is_asynchronous(device)
        staged = [] if before is None else before._staged
        entries = Entries(groups, methods, options, state, members, staged, sums)
        self.entries, self._storages = entries.found, entries.storages
        weighted = [g for g in members if methods[g].penalty == "weighted_l1"]
        self._l1_weights = {g: L1Weights(groups[g]["l1_weights"]) for g in weighted}
        self._initial = [float(group.get("initial_accumulator_value", 0.0)) for group in groups]
        self._params = [param for g in members for param in groups[g]["params"]]
        self._roster: Any = None
        self._holding: Sequence[Entry] = self.entries  # those that have their gradient

    def build(self, *, counts_steps: bool, move_counts: bool, count_blocks: Sequence[Tensor] = ()) -> None:
        """Creates missing states and everything that `refresh` keeps up to date. The dictionary of states is what it was; see `publish`.

        ``move_counts``: step counts are brought together; see `regkernels.optim.step.counts.Places`. ``count_blocks``: where there may be
        some already.
        """
        self._counts: counts.Counts | None = None
        if counts_steps or self._must_count():
            before = None if self._before is None else self._before._counts
            if self._capturable or self.may_skip:
                before = before if isinstance(before, counts.DeviceCounts) else None
                self._counts = counts.DeviceCounts(self.entries, self.device, before, move=move_counts)
            else:
                known = before if isinstance(before, counts.HostCounts) else count_blocks
                self._counts = counts.HostCounts(self.entries, known, move=move_counts)
        self._before = None
        states.fill(self.entries, self._initial)
        # In one order on all ranks: loading may take a message.
        self._staged: list[Entry] = sorted(
            (entry for entry in self.entries if entry.staged), key=lambda entry: entry.number
        )
        self._table = table_of(self.entries)
        self.draws = any(entry.format.draws for entry in self.entries)
        self._dirty = False
        self._made: list[Scalar] = []  # what a step that has been made and not finished says of ``skip``
        self._loaded: list[Entry] = []
        self._states: Any = None
        self._roster = self._make_roster(self._params)
        self.active = Active(self.entries, self._storages, self._table, self._counts)

    def publish(self) -> None:
        """Puts states that were made into the dictionary.

        That is done after the first step with them: until then an interrupt, or a step that is left out, leaves the dictionary
        as it was, and does not take a momentum buffer of zeros for one of an earlier step.
        """
        if self._states is None:
            states.publish(self.entries, self._state)
            for entry in self.entries:
                entry.made = {}
            self._states = extension.states(self._state, self._seen())

    def has_states_alone(self) -> bool | None:
        """Tells whether nobody else has a tensor of a state, or its memory, who could exchange it unseen; None where only memory is
        shared, for good perhaps."""
        if self._states is None:
            return False
        alone = next(map(sys.getrefcount, [object()])) + 2  # beside a list the dictionary and the fast check have it
        for entry in self.entries:
            names = self._names_in_state(entry)
            counts = map(sys.getrefcount, [entry.state[name] for name in names])
            if any(count > alone + (name != "step") for name, count in zip(names, counts, strict=True)):
                return False  # what belongs to the rule or the rounding its entry has, too
        alone = _holders(torch.zeros((), device="cpu"))
        tensors = (entry.state[name] for entry in self.entries for name in self._names_in_state(entry))
        return True if all(_holders(shards.held(tensor)) <= alone for tensor in tensors) else None

    # --- every step ---

    def refresh(
        self, groups: Sequence[Mapping[str, Any]], methods: Sequence[Method], state: State, *, check_states: bool
    ) -> bool:
        """Brings the addresses of gradients up to date; False where only a new plan will do."""
        if self._roster is None or self._states is None or methods != self._methods or state is not self._state:
            return False
        if _is_capturable(groups[g] for g in self._members) != self._capturable:
            return False
        if any(l1_weights.changed(groups[g]["l1_weights"]) for g, l1_weights in self._l1_weights.items()):
            return False
        if any(entry.moved() for entry in self._staged) or (check_states and not self._states.hold()):
            return False
        if self._counts is not None and self._counts.were_set():
            return False
        self._dirty, dirty = True, self._dirty  # should it end before it is done, addresses may have changed
        answer = self._roster.refresh(
            [groups[g]["params"] for g in self._members],
            self._table.data_ptr() + segments.GRADIENT * self._table.element_size(),
            self._table.size(1),
        )
        if answer == extension.REBUILD:
            return False
        if answer == extension.MOVED or dirty:
            self.active.look()
        self._dirty = False
        if self._staged or self.active.splits:
            self._hold_gradients()
        return True

    def _hold_gradients(self) -> None:
        """Gives the entries the gradients that the check of addresses has found."""
        self._holding = self.entries
        for entry, grad in zip(self.entries, self._roster.gradients(), strict=True):
            entry.grad = grad

    def release(self) -> None:
        """Lets go of the gradients, when the step is over: until then the kernels use their memory."""
        if self._roster is not None:
            self._roster.release()
        for entry in self._holding:
            entry.grad = None
        self._holding = ()

    def load_staged(self) -> None:
        """Copies weights and gradients that kernels cannot use where they lie."""
        active = [entry for entry in self._staged if entry.grad is not None]
        for entry in active:
            assert entry.grad is not None
            validation.gradient(entry.param, entry.grad, entry.name)
        for entry in active:
            entry.load()
        self._loaded = active

    def batch(self, rows: list[Hyper] | None = None, skip: Scalar | None = None) -> Batch:
        """Returns what the next step updates, for a backend.

        ``rows``: of hyper-parameters, one for each of `Active.rows`. ``skip``: of the step that is made with it, see `finish`.
        """
        active = self.active
        return Batch(
            self.device,
            active.segments,
            self._operands,
            rows or [],
            self._memory,
            active.generation,
            self.totals,
            self.may_skip or active.splits,
            None if skip is None else partial(self._made.append, skip),
        )

    def _operands(self) -> list[Operands]:
        if not self._holding:
            self._hold_gradients()
        return [entry.operands(row) for entry, row in self.active.entries()]

    def made(self, skip: Scalar) -> None:
        """Notes that the kernels have made a step; ``skip`` is not 0 where the device left it out."""
        if not self._made:
            self._made.append(skip)

    def finish(self) -> None:
        """Does what is left of a step that was made, if there is one: copies staged weights back, publishes states, counts.

        After an interrupt, the next step begins with it.
        """
        if not self._made:
            return
        for entry in self._loaded:
            entry.save()
        # Autograd must see that the weights have changed: a backward through a graph that saved them then raises.
        torch.autograd.graph.increment_version(self.active.params)
        self.publish()
        self.active.first_steps_are_made()
        if self._counts is None:
            self._made.clear()
        else:
            self._counts.advance(self.active.mask, self._made[0], self._made.clear)

    # --- building ---

    def _must_count(self) -> bool:
        """Tells whether steps are counted for another reason than the rule: random numbers, or a first step that may be left
        out without the host knowing."""
        return any(entry.format.draws or (self.may_skip and entry.rule == "momentum") for entry in self.entries)

    def _names_in_state(self, entry: Entry) -> list[str]:
        return [*entry.state_names, *(() if self._counts is None else ("step",))]

    def _seen(self) -> list[tuple[Tensor, dict[str, Any], list[str], list[Any], list[bool]]]:
        """Returns what the fast check of states is to look at."""
        seen = []
        for entry in self.entries:
            names = self._names_in_state(entry)
            tensors = [entry.state[name] for name in names]
            if names:
                seen.append((entry.param, entry.state, names, tensors, [shards.is_dtensor(t) for t in tensors]))
        return seen

    def _make_roster(self, params: Sequence[Tensor]) -> Any:
        """Makes the fast check of the addresses of ``params``; None without the extension."""
        slots = {id(entry.param): slot for slot, entry in enumerate(self.entries)}
        modes = [
            extension.WITHOUT_STATE
            if id(param) not in slots
            else extension.STAGED
            if self.entries[slots[id(param)]].staged
            else extension.SPREAD
            if shards.is_dtensor(param)
            else extension.IN_PLACE
            for param in params
        ]
        return extension.roster(params, modes, [slots.get(id(param), 0) for param in params])

    def check_options(self, index: int, group: Mapping[str, Any]) -> None:
        """Raises where options of a param group that have changed do not fit its parameters."""
        for entry in self.entries:
            if entry.group == index:
                validation.complex_parameter(entry.param, group["l1"], entry.rule, entry.name)
                penalty_keys.check_complex(group, entry.param, entry.name)
                graphs.capturable(entry.param, group, entry.name, interpreted=backends.name() == "triton")


def _holders(tensor: Tensor) -> int:
    """Counts who has the memory of a tensor."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined, no-any-return]


def _is_capturable(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Tells whether a param group asks for counts on the device: they are kept there for all of a plan then."""
    return any(group.get("capturable") for group in groups)
