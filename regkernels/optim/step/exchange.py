"""Sends what the ranks of a sharded run tell each other in a step: sums, and whether they still have the same optimizer.

How many messages a step takes must not depend on what a single rank sees: one for the norm of all gradients where anything
asks for it, one for `stats`, whether or not the step is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends
from regkernels.distributed import agreement
from regkernels.distributed.agreement import Described
from regkernels.distributed.sums import Pending, Sums
from regkernels.optim.options import Options
from regkernels.optim.step import norms
from regkernels.optim.step.plan import Plan
from regkernels.optim.step.scaling import Scaling
from regkernels.table.hyper import Scalar
from regkernels.table.segments import SUMS
from regkernels.table.upload import capturing, placed

MARKS = 3
"""How many numbers stand behind the sums of a message, from which ranks see whether their hyper-parameters are the same."""


class Exchange:
    """Sends the messages of one optimizer.

    It is rebuilt with the plans, as a rank sees fit: what is on its way is taken over from ``before``.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]] = (),
        process_group: Any = None,
        before: Exchange | None = None,
    ) -> None:
        self.sums = Sums.of((param for group in groups for param in group["params"]), process_group)
        self._device = next((param.device for group in groups for param in group["params"]), torch.device("cpu"))
        # Fingerprints that nobody has looked at, and those of the step before, which leave the device.
        self._sent: Pending | None = None if before is None else before._sent
        self._copied: tuple[Tensor, Any] | None = None if before is None else before._copied

    @property
    def communicates(self) -> bool:
        """Tells whether there are other ranks to tell anything."""
        return self.sums.communicates

    def norm(self, described: Described, sums: Sequence[Sequence[Scalar]], skip: Scalar) -> tuple[Scalar, Scalar]:
        """Returns the sum of the squares of all gradients of all ranks, and whether any of them leaves the step out. One message.

        ``sums``: for each device, the sum of each class; none where this rank has no gradients. Numbers are tensors where only
        a device knows them.

        Raises:
            ValueError: on every rank, where hyper-parameters differ between ranks.
        """
        known = all(not isinstance(value, Tensor) for of_device in sums for value in of_device)
        device = torch.device("cpu") if known and not isinstance(skip, Tensor) else self._device
        table = torch.zeros(self.sums.classes, 1, dtype=torch.float64, device=device)
        for of_device in sums:
            for index, value in enumerate(of_device):
                table[index] += value
        sent = self.sums.add(table, [skip, *_marks(described)])
        total = sent.get()
        if device.type == "cpu":
            square_sum, skip, *marks = total.tolist()
            if agreement.differ(*marks):
                agreement.raise_difference(described, self.sums)
            return square_sum, skip
        self._keep(sent)
        return total[0], total[1]

    def totals(self, options: Options, described: Described, tables: Sequence[Any]) -> Pending:
        """Adds up the sums of `stats` over all ranks: (param groups * sums,), and behind them what `look_back` reads. One message,
        which nobody waits for yet.

        ``tables``: one of (classes * param groups, sums) per device.
        """
        groups = len(described.groups)
        tensors = [table for table in tables if isinstance(table, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        total = torch.zeros(self.sums.classes, groups * len(SUMS), dtype=torch.float64, device=device)
        for table in tables:
            total += placed(table, device).reshape(total.shape)
        sent = self.sums.add(total, _marks(described), wait=False)
        if not options.asks_for_norm:  # which says the same, and earlier
            self._keep(sent)
        return sent

    def look_back(self, described: Described) -> None:
        """Looks at the fingerprints of an earlier step.

        All ranks look at those of the same step, as they raise together or not at all: on an accelerator, two steps back,
        which costs no waiting.

        Raises:
            ValueError: on every rank, where hyper-parameters differed between ranks.
        """
        if capturing():
            return
        copied, self._copied = self._copied, None
        sent, self._sent = self._sent, None
        if copied is not None:
            copied[1].synchronize()
            self._compare(described, copied[0])
        if sent is not None:
            marks = sent.get()[-MARKS:]
            if marks.is_cpu:
                self._compare(described, marks)
            elif marks.is_cuda:
                self._copied = _on_its_way(marks)

    def _keep(self, sent: Pending) -> None:
        """Keeps fingerprints for `look_back`."""
        if not capturing():  # else it would be looked at once, and added up in every replay
            self._sent = sent

    def _compare(self, described: Described, marks: Tensor) -> None:
        if agreement.differ(*marks.tolist()):
            agreement.raise_difference(described, self.sums)


def with_norm(
    scaling: Scaling, options: Options, own: Exchange, described: Described, plans: Sequence[Plan]
) -> Scaling:
    """Returns ``scaling`` with what is asked for by the norm of all gradients: those of ``plans``, and of other ranks."""
    if not own.communicates:
        return scaling.with_norm(options, plans)
    if not options.asks_for_norm:
        return scaling
    square_sum, skip = own.norm(described, square_sums(plans, own.sums.classes), scaling.skip)
    return scaling._replace(skip=skip).by(options, square_sum)


def before_building(
    scaling: Scaling, options: Options, own: Exchange, described: Described, plans: Sequence[Plan]
) -> Scaling:
    """Returns ``scaling`` with ``skip`` as far as the host knows it: plans of a step that is left out are not built, as that
    creates states."""
    if not options.may_skip or (scaling.skips and not own.communicates):
        return scaling
    if not own.communicates:
        left_out = options.skip_nonfinite and not norms.are_finite(plans)
        return scaling._replace(skip=1.0) if left_out else scaling
    if any(backends.is_asynchronous(plan.device) for plan in plans):
        return scaling
    square_sum, skip = own.norm(described, norms.square_sums_on_host(plans, own.sums.classes), scaling.skip)
    return scaling._replace(skip=skip).by(options, square_sum)


def square_sums(plans: Sequence[Plan], classes: int) -> list[Sequence[Scalar]]:
    """Returns the sum of the squares of the gradients of each class, for each plan."""
    found: list[Sequence[Scalar]] = []
    for plan in plans:
        backend = backends.backend_for(plan.device)
        batch = plan.batch()
        single = classes == 1
        found.append([backend.gradient_square_sum(batch)] if single else backend.gradient_square_sums(batch, classes))
    return found


def _marks(described: Described) -> list[float]:
    """Returns what `agreement.differ` is asked with, once it is added up: MARKS numbers."""
    mark = float(agreement.fingerprint(described.groups))
    return [1.0, mark, mark * mark]


def _on_its_way(numbers: Tensor) -> tuple[Tensor, Any]:
    """Starts to copy numbers to the host; returns the copy, and an event after which it may be read."""
    # On the host, whatever the user has chosen for tensors in general.
    pinned = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
    pinned.copy_(numbers, non_blocking=True)
    # Which copies on the stream of the numbers' device, and that need not be the current one.
    return pinned, torch.cuda.current_stream(numbers.device).record_event()
