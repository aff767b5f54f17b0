"""Keeps the mirrors of all parameters of an optimizer, and moves what travels between them and the devices in a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import validation
from regkernels.optim.offload.mirror import Mirror, mirrors_of
from regkernels.optim.offload.param_groups import named
from regkernels.optim.offload.pinned import Lane
from regkernels.optim.step.entry import parameter_name

Groups = Sequence[Mapping[str, Any]]
State = MutableMapping[Any, Any]


class Mirrors:
    """Finds the mirror of each parameter, and moves gradients and weights of all of them."""

    def __init__(self) -> None:
        self._by_param: dict[int, Mirror] = {}  # by the parameter's id
        self._lanes: dict[torch.device, Lane] = {}

    def __iter__(self) -> Iterator[Mirror]:
        return iter(self._by_param.values())

    def of(self, groups: Iterable[Mapping[str, Any]], first: int = 0) -> dict[int, Mirror]:
        """Returns those of all parameters in ``groups``, by ids; new ones where there are none that fit. Keeps nothing yet.

        ``first``: the index of the first param group, for messages.
        """
        found: dict[int, Mirror] = {}
        new: dict[int, tuple[Tensor, str]] = {}
        for param, name in named(groups, first):
            known = self._by_param.get(id(param))
            if known is not None and known.fits():
                found[id(param)] = known
            else:
                new.setdefault(id(param), (param, name))
        return {**found, **dict(zip(new, mirrors_of(list(new.values()), self._lanes), strict=True))}

    def add(self, mirrors: Mapping[int, Mirror]) -> None:
        """Keeps what `of` has found."""
        self._by_param.update(mirrors)

    def replace(self, mirrors: Mapping[int, Mirror]) -> None:
        """Keeps what `of` has found, and drops all others."""
        for key in [key for key, mirror in self._by_param.items() if mirrors.get(key) is not mirror]:
            self._by_param.pop(key).ignore()
        self.add(mirrors)

    def are_known(self, groups: Groups, theirs: Groups) -> bool:
        """Tells whether ``theirs`` are the param groups of the parameters' mirrors, and these still fit."""
        return len(groups) == len(theirs) and all(map(self._is_known, groups, theirs))

    def _is_known(self, group: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        params, hosts = group["params"], theirs["params"]
        mirrors = [self._by_param.get(id(param)) for param in params]
        return len(params) == len(hosts) and all(
            mirror is not None and mirror.host is host and mirror.fits()
            for mirror, host in zip(mirrors, hosts, strict=True)
        )

    def gather(self, groups: Groups, *, free: bool) -> list[Mirror]:
        """Brings gradients, and weights that were set, to the CPU, and waits for them. Returns what is to be updated.

        ``free``: gradients on the device are dropped.
        """
        updated, on_device = [], []
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                mirror = self._by_param[id(param)]
                if param.grad is not None:
                    validation.gradient(param, param.grad, parameter_name(group, index, position))
                    on_device.append(mirror)
                elif not mirror.holds:
                    mirror.host.grad = None
                    continue
                updated.append(mirror)
        for lane in self._lanes.values():
            lane.wait_for_sent()
        for mirror in on_device:
            if free:
                mirror.take()
            else:
                mirror.fetch_gradient()
        for mirror in updated:
            mirror.fetch_weight()
        for lane in self._lanes.values():
            lane.wait_for_fetched()
        for mirror in updated:
            mirror.hand_over()
        return updated

    def take_states(self, states: State, theirs: State) -> bool:
        """Hands states of parameters that somebody has exchanged to their mirrors; drops states of what has no mirror.

        Returns whether there were any.
        """
        exchanged = False
        hosts = set()
        for mirror in self:
            hosts.add(mirror.host)
            state = states.get(mirror.param)
            if state is not theirs.get(mirror.host):
                exchanged = True
                if state is None:
                    del theirs[mirror.host]
                else:
                    theirs[mirror.host] = state
        for host in [key for key in theirs if isinstance(key, Tensor) and key not in hosts]:
            del theirs[host]
        return exchanged

    def states_of_params(self, theirs: State) -> defaultdict[Any, Any]:
        """Returns the states of mirrors by parameter, others by what they have been by."""
        params = {id(mirror.host): mirror.param for mirror in self}
        return defaultdict(dict, {params.get(id(key), key): value for key, value in theirs.items()})

    def drop_gradients(self, mirrors: Iterable[Mirror] | None = None) -> None:
        """Forgets gradients, of all mirrors for None."""
        for mirror in self if mirrors is None else mirrors:
            mirror.drop()

    def drop_used_gradients(self) -> None:
        """Forgets those that the last step has used, where no others wait."""
        for mirror in self:
            if mirror.param.grad is None and not mirror.holds:
                mirror.host.grad = None

    def forget_weights(self) -> None:
        """Lets the next step fetch all weights."""
        for mirror in self:
            mirror.forget_weight()

    def watch(self) -> None:
        """Lets every backward bring gradients here, and free them on the device."""
        for mirror in self:
            mirror.watch()

    def ignore(self) -> None:
        """Leaves gradients to the backward pass again."""
        for mirror in self:
            mirror.ignore()


def send(mirrors: Sequence[Mirror]) -> None:
    """Starts to copy weights to their devices, in the order of the current streams."""
    for mirror in mirrors:
        mirror.send_weight()
    for lane in {mirror.lane for mirror in mirrors}:
        lane.sent()


def publish(updated: Iterable[Mirror], states: State, theirs: State) -> None:
    """Puts what a step has made into the dictionary of the parameters' states, except where there was none."""
    for mirror in updated:
        state = theirs.get(mirror.host)
        if state is not None:
            states[mirror.param] = state
