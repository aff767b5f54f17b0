"""Searches for the parameters that a step works on: validates them, and orders them as their memory lies."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, reference, validation
from regkernels.distributed import shards
from regkernels.distributed.sums import Sums
from regkernels.flat import FlatParameters
from regkernels.memory import has_layout, is_usable
from regkernels.optim import penalty_keys
from regkernels.optim.options import Options
from regkernels.optim.penalty_keys import Method
from regkernels.optim.step import graphs
from regkernels.optim.step.entry import Entry, parameter_name, parameter_numbers
from regkernels.optim.step.split_groups import is_split

State = MutableMapping[Any, Any]


class Entries:
    """Lists the parameters of some param groups that have a gradient, or states from an earlier one.

    Attributes:
        found: their entries, by the totals that their sums are added to, then by storage, then by address.
        storages: for each of them, what its memory belongs to: neighbours within it may be merged.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        methods: Sequence[Method],
        options: Options,
        state: State,
        members: Sequence[int],
        staged_before: Sequence[Entry],
        sums: Sums,
    ) -> None:
        """Looks for them; raises where one cannot be updated, and changes nothing.

        ``groups``: all param groups, and ``members``: which of these. ``staged_before``: entries whose buffers to use again.
        """
        self._options, self._state = options, state
        self._interpreted = backends.name() == "triton"
        self._computable: set[tuple[torch.device, torch.dtype]] = set()  # what a backend was found for
        self._staged_before = {id(entry.param): entry for entry in staged_before}
        # Each gradient is taken once, and held: looking at it may run anything, and other threads.
        listed = [(g, i, param, param.grad) for g in members for i, param in enumerate(groups[g]["params"])]
        numbers = parameter_numbers(groups)
        names = [reference.RULES[method.rule].state_names for method in methods]
        found = [
            self._entry(param, grad, g, i, numbers[g][i], groups[g], methods[g])
            for g, i, param, grad in listed
            if grad is not None or self._is_known(param, names[g])
        ]
        for entry in found:
            entry.total = sums.total_of(entry.param, entry.group, len(groups))
        # By address within a storage, so that neighbours can be merged; storages in the order given.
        storages = {id(entry): _storage(entry) for entry in found}
        order = {storage: rank for rank, storage in enumerate(dict.fromkeys(storages.values()))}
        self.found = sorted(found, key=lambda e: (e.total, order[storages[id(e)]], e.weight.data_ptr()))
        self.storages = [storages[id(entry)] for entry in self.found]
        # What is not updated may have no memory at present, as where parameters are gathered when they are needed.
        validation.no_shared_memory(
            (entry.own, entry.name) for entry in self.found if entry.grad is not None or entry.own.data_ptr()
        )

    def _is_known(self, param: Tensor, names: Sequence[str]) -> bool:
        """Tells whether a parameter without a gradient has had one.

        A rule without states does not know; where nothing is created either, its parameters are listed once and for all.
        """
        state = self._state.get(param)
        if names:
            return state is not None and all(state.get(name) is not None for name in names)
        if not param.requires_grad or isinstance(param, torch.nn.UninitializedParameter):
            return False
        own = self._options.precision.of(param)
        return bool(state) or not (own.kept or own.draws)

    def _entry(
        self,
        param: Tensor,
        grad: Tensor | None,
        group: int,
        position: int,
        number: int,
        options: Mapping[str, Any],
        method: Method,
    ) -> Entry:
        """Returns the entry of a parameter; raises where the parameter, its gradient or its states do not fit."""
        name = parameter_name(options, group, position)
        validation.parameter(param, name)
        validation.complex_parameter(param, options["l1"], method.rule, name)
        penalty_keys.check_parameter(options, position, param, name)
        validation.precision(self._options.precision, param, name)
        if (param.device, param.dtype) not in self._computable:
            backends.check(param.device, param.dtype, name)
            self._computable.add((param.device, param.dtype))
        graphs.capturable(param, options, name, interpreted=self._interpreted)
        held = shards.held(param)
        staged = not shards.is_plain(param) or not is_usable(held)
        if grad is not None:
            validation.addressable(held, name)
            validation.gradient(param, grad, name)
            own_grad = shards.held(grad)
            staged = staged or not shards.is_plain(grad) or not shards.is_spread_alike(grad, param)
            staged = staged or not has_layout(own_grad, held) or own_grad.is_neg() or own_grad._is_zerotensor()
        state, own = self._state.get(param, {}), self._options.precision.of(param)
        before = self._staged_before.get(id(param))
        split = is_split(param, method)
        of_kernel = method._replace(penalty="plain") if split else method
        entry = Entry(param, group, of_kernel, name, number, own, state, staged, before=before, split=split, grad=grad)
        if method.penalty == "weighted_l1":
            entry.use_l1_weight(options["l1_weights"][position])
        for key in entry.state_names:
            validation.state(key, state.get(key), param, name)
        step = state.get("step")
        if isinstance(step, Tensor):
            validation.addressable(step, f"the state 'step' of {name}")
        if not isinstance(step, Tensor) or step.is_cpu or step.is_meta:  # others are read when they are taken over
            validation.step_count(step, name)
        return entry


def _storage(entry: Entry) -> int:
    """Returns the address of what an entry's memory belongs to: a flat buffer, or its own storage."""
    buffer = None if entry.staged else FlatParameters.buffer(entry.param)
    return (entry.weight if buffer is None else buffer).untyped_storage().data_ptr()
