"""Adds up sums over parameters that are spread over ranks.

Each rank adds up what it holds. Parameters that are sharded over the same dimensions of a mesh form a *class*: their sums
are added over the ranks of those dimensions. What is replicated is the same on every rank and counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkernels.distributed.shards import cut_over, is_dtensor
from regkernels.table.hyper import Scalar

NOBODY_ANSWERS = (
    "a rank may have ended (its own message, printed earlier, says why), or the ranks call step() a different number of times "
    "or with other arguments"
)


@dataclass
class Pending:
    """Holds a sum that is on its way."""

    _table: Tensor
    _device: torch.device
    _work: Any = None
    _ranks: int = 1

    def get(self) -> Tensor:
        """Returns the sum on the device of its parts; waits for the other ranks, on an accelerator in its stream only."""
        if self._work is not None:
            _waited(self._work, self._ranks)
            self._work = None
        return self._table.to(self._device)


@dataclass
class Sums:
    """Knows which class each parameter of an optimizer belongs to, and which ranks' sums are added for each class."""

    meshes: list[Any] = field(default_factory=list)  # of all parameters
    _process_groups: dict[str, Any] = field(default_factory=dict)  # process groups that take part, by name
    _classes: dict[tuple[str, ...], int] = field(default_factory=lambda: {(): 0})
    _everywhere: tuple[str, ...] = ()  # process groups that every class is added over

    @classmethod
    def of(cls, params: Iterable[Any], process_group: Any = None) -> Sums:
        """Finds the classes. ``params``: all of an optimizer, with and without gradients, so that all ranks find the same classes.

        ``process_group``: whose ranks have other parameters; None: there is none.
        """
        sums = cls()
        if process_group is not None and process_group.size() > 1:
            name = str(process_group.group_name)
            sums._process_groups[name], sums._everywhere = process_group, (name,)
        sums._classes = {sums._everywhere: 0}
        for param in params:
            if is_dtensor(param):
                sums._classes.setdefault(sums._names(param), len(sums._classes))
                if not any(mesh is param.device_mesh for mesh in sums.meshes):
                    sums.meshes.append(param.device_mesh)
        return sums

    def class_of(self, param: Any) -> int:
        """Returns the class of a parameter, counted from 0; plain tensors are of class 0."""
        return self._classes[self._names(param)] if is_dtensor(param) else 0

    def total_of(self, param: Any, group: int, groups: int) -> int:
        """Returns which total the sums of a parameter are added to: each class has one per param group, of which this is number
        ``group`` of ``groups``. `regkernels.table.segments.class_of_total` is the inverse."""
        return self.class_of(param) * groups + group

    @property
    def classes(self) -> int:
        """Returns how many classes there are."""
        return len(self._classes)

    @property
    def communicates(self) -> bool:
        """Tells whether other ranks take part: then every `add` is a message."""
        return bool(self._process_groups)

    @property
    def process_groups(self) -> list[Any]:
        """Returns the process groups that sums are added over."""
        return list(self._process_groups.values())

    def add(self, table: Tensor, common: Sequence[Scalar] = (), *, wait: bool = True) -> Pending:
        """Returns the sums over all ranks and classes of the columns of ``table``, then those of ``common``.

        ``table``: float64, (classes, columns), on the device of the parameters. ``common``: numbers of which each rank has one.

        One message where a single process group takes part, or all ranks; else one for each dimension of the mesh that
        something is sharded over. Every rank gets the same bits. Nothing is changed.

        Raises:
            RuntimeError: where another rank does not answer.
        """
        if not self.communicates:
            return Pending(table.sum(0), table.device)
        sent = self._laid_out(table, common)
        classes = [*self._classes, tuple(self._process_groups)]  # what is common is a class of its own, the last one
        whole = self._whole()
        if whole is not None:
            for index, names in enumerate(classes):
                if not self._counts_here(names, whole):
                    sent[index].zero_()
            return self._sent(sent.sum(0), torch.distributed.group.WORLD, table.device, wait=wait)
        *earlier, last = self._process_groups
        for name in earlier:
            members = [index for index, names in enumerate(classes) if name in names]
            # By views: to a list of indices, or to an assignment of a number, an accelerator makes the host wait.
            part = torch.stack([sent[index] for index in members])
            added = self._sent(part, self._process_groups[name], part.device, wait=True).get()
            for index, numbers in zip(members, added, strict=True):
                sent[index].copy_(numbers)
        for index, names in enumerate(classes):
            if last not in names and self._process_groups[last].rank() != 0:
                sent[index].zero_()  # the same on all ranks of that process group: one of them adds it
        return self._sent(sent.sum(0), self._process_groups[last], table.device, wait=wait)

    def _laid_out(self, table: Tensor, common: Sequence[Scalar]) -> Tensor:
        """Returns what is sent: a copy of the table, (classes + 1, columns), whose last class is what is common."""
        device = self._device_of_messages(table.device)
        sent = torch.zeros(self.classes + 1, table.shape[1] + len(common), dtype=torch.float64, device=device)
        sent[:-1, : table.shape[1]] = table
        for column, value in enumerate(common, start=table.shape[1]):
            place = sent[-1, column]
            place.copy_(value) if isinstance(value, Tensor) else place.fill_(value)
        return sent

    # --- which ranks ---

    def _names(self, param: Any) -> tuple[str, ...]:
        """Returns the names of the process groups that the sums of a `DTensor` are added over, and remembers these."""
        over = cut_over(param)
        self._process_groups.update(over)
        return (*self._everywhere, *(name for name in over if name not in self._everywhere))

    def _whole(self) -> Any:
        """Returns a mesh of all ranks along whose dimensions all process groups lie, so that one message does; None without one."""
        if len(self._process_groups) < 2:
            return None
        for mesh in self.meshes:
            names = {str(mesh.get_group(dim).group_name) for dim in range(mesh.ndim)}
            if mesh.size() == torch.distributed.get_world_size() and names.issuperset(self._process_groups):
                return mesh
        return None

    def _counts_here(self, names: Sequence[str], mesh: Any) -> bool:
        """Tells whether this rank is the one, of those that hold the same of a class, which adds it to the sum over a mesh."""
        coordinate = mesh.get_coordinate()
        return all(coordinate[dim] == 0 for dim in range(mesh.ndim) if str(mesh.get_group(dim).group_name) not in names)

    def _device_of_messages(self, device: torch.device) -> torch.device:
        """Returns where messages lie: parameters that were moved to the CPU have the process group of the accelerator still."""
        of_messages = self.meshes[0].device_type if self.meshes else device.type
        if of_messages == device.type:
            return device
        if of_messages == "cpu":
            return torch.device("cpu")
        return torch.device(of_messages, torch.accelerator.current_device_index())

    def _sent(self, part: Tensor, process_group: Any, device: torch.device, *, wait: bool) -> Pending:
        """Sends ``part``, which becomes the sum. ``device``: where that is to be handed out."""
        ranks = process_group.size()
        try:
            work = torch.distributed.all_reduce(part, group=process_group, async_op=True)
        except RuntimeError as error:
            raise _unanswered(ranks) from error
        if wait:
            _waited(work, ranks)
            work = None
        return Pending(part, device, work, ranks)


def _waited(work: Any, ranks: int) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise _unanswered(ranks) from error


def _unanswered(ranks: int) -> RuntimeError:
    return RuntimeError(
        f"the sums of a step (max_grad_norm, skip_nonfinite, stats, groups of weights) could not be added over {ranks} ranks: "
        f"{NOBODY_ANSWERS}. Nothing was updated where this is raised by step(); start again from the last checkpoint"
    )
