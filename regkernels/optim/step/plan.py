"""What a step works on: which parameters have gradients, where their memory is, which segments that makes.

There is one plan per device.

A plan is built from the param groups and the state dictionary, and kept as long as `Plan.refresh` finds every parameter,
gradient and state where it was. Nothing is cached by the identity of a gradient or of a wrapper; what counts is the
address, type, shape and strides that the kernels are going to use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.backends import extension
from regkernels.distributed import shards
from regkernels.distributed.sums import Sums
from regkernels.flat import FlatParameters
from regkernels.memory import has_layout, is_usable
from regkernels.optim import penalty_keys
from regkernels.optim.options import Options
from regkernels.optim.penalty_keys import Method
from regkernels.optim.step import counts, graphs, states
from regkernels.optim.step.entry import Entry, parameter_name, parameter_numbers, table_of
from regkernels.optim.step.l1_weights import L1Weights
from regkernels.optim.step.rules import Row
from regkernels.optim.step.split_groups import is_split
from regkernels.table import segments
from regkernels.table.batch import Batch, Memory, Operands
from regkernels.table.hyper import Hyper, Number
from regkernels.table.segments import Pieces

State = MutableMapping[Any, Any]


class Plan:
    """Entries, the table of segments made of them, and the rows of hyper-parameters that these need.

    Attributes:
        entries: parameters with states, whether or not they have a gradient at present.
        segments: int64 table (see `regkernels.table.segments`) of what the next step updates.
        draws: whether a step needs random numbers.
        may_skip: whether only the device knows that a step is left out.
        totals: number of rows of a table of sums: of all classes (see `regkernels.distributed.sums`) one per param group of the
            optimizer, those on other devices included.
    """

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
        """Of the groups ``members``, which are on ``device``. Validates everything and changes nothing; see `build`.

        ``before``: the plan that this one replaces. What a captured graph may still use stays where it is.
        """
        self._before = before
        staged = [] if before is None else before._staged
        self._staging = {id(entry.param): entry for entry in staged}
        sums = sums or Sums()
        self.device, self.totals, self._generation = device, len(groups) * sums.classes, 0
        self._memory = Memory()
        self._members = list(members)
        self._methods = list(methods)
        self._options = options
        self._state = state
        self._capturable = _is_capturable(groups[g] for g in members)
        # Whether a step was left out is known on the device only, so that is where steps are counted, too.
        self.may_skip = options.may_skip and backends.is_asynchronous(device)
        listed = [(g, i, param) for g in members for i, param in enumerate(groups[g]["params"])]
        numbers = parameter_numbers(groups)
        names = [reference.RULES[method.rule].state_names for method in methods]
        self.entries = [
            self._entry(param, g, i, numbers[g][i], groups[g], methods[g])
            for g, i, param in listed
            if param.grad is not None or self._is_known(param, names[g])
        ]
        weighted = [g for g in members if methods[g].penalty == "weighted_l1"]
        self._l1_weights = {g: L1Weights(groups[g]) for g in weighted}
        self._initial = [float(group.get("initial_accumulator_value", 0.0)) for group in groups]
        # By address within a storage, so that neighbours can be merged; storages in the order given.
        storages = {id(entry): _storage(entry) for entry in self.entries}
        order = {storage: rank for rank, storage in enumerate(dict.fromkeys(storages.values()))}
        for entry in self.entries:
            entry.total = sums.class_of(entry.param) * len(groups) + entry.group
        self.entries.sort(key=lambda e: (e.total, order[storages[id(e)]], e.weight.data_ptr()))
        self._storages = [storages[id(entry)] for entry in self.entries]
        validation.no_shared_memory((entry.own, entry.name) for entry in self.entries)
        self._params = [param for _, _, param in listed]

    def build(self, *, counts_steps: bool, move_states: bool) -> None:
        """Creates missing states and everything that `refresh` keeps up to date.

        ``move_states`` copies all states into fresh flat buffers.
        """
        states.fill(self.entries, self._initial, move=move_states)
        self._counts: counts.Counts | None = None
        if counts_steps or self._must_count():
            before = None if self._before is None else self._before._counts
            if self._capturable or self.may_skip:
                before = before if isinstance(before, counts.DeviceCounts) else None
                self._counts = counts.DeviceCounts(self.entries, self.device, before)
            else:
                self._counts = counts.HostCounts(self.entries, keep=not move_states)
        self._before, self._staging = None, {}
        states.publish(self.entries, self._state)
        # In one order on all ranks: loading may take a message.
        self._staged: list[Entry] = sorted(
            (entry for entry in self.entries if entry.staged), key=lambda entry: entry.number
        )
        self._group_of = torch.tensor([entry.group for entry in self.entries], dtype=torch.int64, device="cpu")
        self._table = table_of(self.entries)
        self.draws = any(entry.format.draws for entry in self.entries)
        same = [a == b for a, b in pairwise(self._storages)]
        may_follow = zip([False, *same], self.entries, strict=False)
        self._may_follow = torch.tensor([s and not e.by_groups for s, e in may_follow], dtype=torch.bool, device="cpu")
        self._pieces: Pieces | None = None
        if any(entry.is_cut for entry in self.entries):
            self._pieces = Pieces.of([entry.pieces for entry in self.entries])
        self._first = torch.tensor([entry.first for entry in self.entries], dtype=torch.bool, device="cpu")
        self._split = torch.tensor([entry.split for entry in self.entries], dtype=torch.int64, device="cpu")
        self._splits = bool(self._split.any())
        self._may_leave_out = self.may_skip or self._splits
        self._row_keys: list[tuple[int, int, bool]] = []  # group, an entry with the row's step count, first
        self._active = torch.zeros(0, dtype=torch.bool, device="cpu")
        self._all_active, self._updated = True, list[Tensor]()
        self._dirty = False
        self._roster = self._make_roster(self._params)
        self._activate()

    # --- every step ---

    def refresh(
        self, groups: Sequence[Mapping[str, Any]], methods: Sequence[Method], state: State, *, check_states: bool
    ) -> bool:
        """Brings the addresses of gradients up to date; False where only a new plan will do."""
        if self._roster is None or methods != self._methods or state is not self._state:
            return False
        if _is_capturable(groups[g] for g in self._members) != self._capturable:
            return False
        if any(l1_weights.changed(groups[g]) for g, l1_weights in self._l1_weights.items()):
            return False
        if any(entry.changed() for entry in self._staged) or (
            check_states and not states.are_ours(self.entries, self._state, self._table, self._counts)
        ):
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
            self._activate()
        self._dirty = False
        return True

    def load_staged(self) -> None:
        active = [entry for entry in self._staged if entry.param.grad is not None]
        for entry in active:
            assert entry.param.grad is not None
            validation.gradient(entry.param, entry.param.grad, entry.name)
        for entry in active:
            entry.load()

    @property
    def has_rows(self) -> bool:
        """Whether the next step updates anything."""
        return bool(self._row_keys)

    @property
    def rows(self) -> list[Row]:
        """The distinct rows that the next step needs, in the order of `segments`' row column."""
        return [Row(group, self._counts.next(i) if self._counts else 0, first) for group, i, first in self._row_keys]

    def advance(self, skip: Number) -> None:
        """After the kernels: copies staged weights back and counts the step, unless ``skip`` is not 0 on the device."""
        for entry in self._staged:
            if entry.param.grad is not None:
                entry.save()
        # Autograd must see that the weights have changed: a backward through a graph that saved them then raises.
        torch.autograd.graph.increment_version(self._updated)
        if self._counts is not None:
            self._counts.advance(None if self._all_active else self._active, skip)
        if any(first for _, _, first in self._row_keys):
            self._first[self._active] = False
            self._row_keys = [(group, index, False) for group, index, _ in self._row_keys]

    def batch(self, rows: list[Hyper] | None = None) -> Batch:
        """What the next step updates, for a backend. ``rows``: of hyper-parameters, one for each of `rows`."""
        return Batch(
            self.device,
            self.segments,
            self._operands,
            rows or [],
            self._memory,
            self._generation,
            self.totals,
            self._may_leave_out,
        )

    def _operands(self) -> list[Operands]:
        return [entry.operands(row) for entry, row in self._active_entries()]

    def _active_entries(self) -> Iterator[tuple[Entry, int]]:
        """Entries of the next step, each with the index of its row."""
        for index in self._active.nonzero().flatten().tolist():
            yield self.entries[index], int(self._table[index, segments.ROW])

    def split_entries(self, rows: Sequence[Hyper]) -> Iterator[tuple[Entry, Hyper]]:
        """Those of them that `regkernels.optim.step.split_groups` updates, with their rows."""
        if self._splits:
            yield from ((entry, rows[row]) for entry, row in self._active_entries() if entry.split)

    def rows_of_kernels(self, rows: list[Hyper]) -> list[Hyper]:
        """The same but for these entries: a kernel only forms their sums."""
        if not self._splits:
            return rows
        pairs = zip(rows, self._row_keys, strict=True)
        return [row._replace(skip=1.0) if self.entries[index].split else row for row, (_, index, _) in pairs]

    # --- building ---

    def _must_count(self) -> bool:
        """Whether steps are counted for another reason than the rule: random numbers, or a first step that may be left out
        without the host knowing."""
        return any(entry.format.draws or (self.may_skip and entry.rule == "momentum") for entry in self.entries)

    def _is_known(self, param: Tensor, names: Sequence[str]) -> bool:
        """Whether a parameter without a gradient has had one. A rule without states does not know; where nothing is created
        either, its parameters are listed once and for all."""
        state = self._state.get(param)
        if names:
            return state is not None and all(state.get(name) is not None for name in names)
        if not param.requires_grad or isinstance(param, torch.nn.UninitializedParameter):
            return False
        own = self._options.precision.of(param)
        return bool(state) or not (own.kept or own.draws)

    def _entry(
        self, param: Tensor, group: int, position: int, number: int, options: Mapping[str, Any], method: Method
    ) -> Entry:
        name = parameter_name(options, group, position)
        validation.parameter(param, name)
        validation.complex_parameter(param, options["l1"], method.rule, name)
        penalty_keys.check_parameter(options, position, param, name)
        validation.precision(self._options.precision, param, name)
        backends.check(param.device, param.dtype, name)
        graphs.capturable(param, options, name, interpreted=backends.name() == "triton")
        held = shards.held(param)
        staged = not shards.is_plain(param) or not is_usable(held)
        if param.grad is not None:
            validation.gradient(param, param.grad, name)
            grad = shards.held(param.grad)
            staged = staged or not shards.is_plain(param.grad) or not shards.is_spread_alike(param.grad, param)
            staged = staged or not has_layout(grad, held) or grad.is_neg()
        state, own = self._state.get(param, {}), self._options.precision.of(param)
        before = self._staging.get(id(param))
        split = is_split(param, method)
        of_kernel = method._replace(penalty="plain") if split else method
        entry = Entry(param, group, of_kernel, name, number, own, state, staged, before=before, split=split)
        if method.penalty == "weighted_l1":
            entry.use_l1_weight(options["l1_weights"][position])
        for key in entry.state_names:
            validation.state(key, state.get(key), param, name)
        return entry

    def _make_roster(self, params: Sequence[Tensor]) -> Any:
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

    def _activate(self) -> None:
        """Finds which entries take part, the rows they need, and the segments they make."""
        self._generation += 1
        active = self._table[:, segments.GRADIENT] != 0
        if not torch.equal(active, self._active):
            self._active, self._all_active = active, bool(active.all())
            pairs = zip(self.entries, active.tolist(), strict=True)
            self._updated = [entry.param for entry, is_active in pairs if is_active]
            self._find_rows()
        if self._pieces is not None:
            table, owners = self._pieces.cut(self._table, active)
            self.segments = segments.merge(table, self._may_follow[owners])
        elif self._all_active:
            self.segments = segments.merge(self._table, self._may_follow)
        else:
            self.segments = segments.merge(self._table[active], self._may_follow[active])

    def _find_rows(self) -> None:
        # One number per (group, split, step count, first), so that equal rows are found without a loop over parameters.
        key = (self._group_of << 41) + (self._split << 40)
        if self._counts is not None:
            key += self._counts.classes() << 1
        key += self._first
        members = self._active.nonzero().flatten()
        keys, row = key[members].unique(return_inverse=True)
        example = torch.full_like(keys, len(key)).scatter_reduce_(0, row, members, "amin")
        self._row_keys = [
            (key >> 41, index, bool(key & 1)) for key, index in zip(keys.tolist(), example.tolist(), strict=True)
        ]
        self._table[members, segments.ROW] = row

    def check_options(self, index: int, group: Mapping[str, Any]) -> None:
        """Raises where options of a group that have changed do not fit its parameters."""
        for entry in self.entries:
            if entry.group == index:
                validation.complex_parameter(entry.param, group["l1"], entry.rule, entry.name)
                penalty_keys.check_complex(group, entry.param, entry.name)
                graphs.capturable(entry.param, group, entry.name, interpreted=backends.name() == "triton")


def _is_capturable(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Counts are kept on the device for all groups of a plan as soon as one asks for it."""
    return any(group.get("capturable") for group in groups)


def _storage(entry: Entry) -> int:
    buffer = None if entry.staged else FlatParameters.buffer(entry.param)
    return (entry.weight if buffer is None else buffer).untyped_storage().data_ptr()
