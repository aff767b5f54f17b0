"""Lets a backward pass make the steps: says when, and for which parameters."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from regkernels.dynamo import outside_of_graphs
from regkernels.flat import FlatParameters
from regkernels.optim.offload import CPUOffload
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.release.buckets import Bucket, Member, merged
from regkernels.optim.release.hook import Hook
from regkernels.optim.stats import Stats

BUCKET_BYTES = 16 << 20


def step_in_backward(optimizer: Optimizer, *, bucket_bytes: int = BUCKET_BYTES) -> GradientRelease:
    """Lets ``backward`` update the parameters of ``optimizer``, each as soon as its gradient is complete, and free the gradient.

    A training loop stays as it is. ``optimizer.step()`` finds no gradients any more and does nothing, unless some are
    left (those of `GradientRelease.accumulate`). Weights and states are, bit for bit, those of a step after the backward.

    Args:
        optimizer: an optimizer of `regkernels.optim`, with any options but those below.
        bucket_bytes: parameters are updated together when their gradients make this many bytes, >= 0. They are put
            together in the order in which the first backward finishes them. All gradients of a device take at most
            ``bucket_bytes`` and the largest one of them, instead of as many bytes as the parameters. A small number saves
            more memory; each bucket costs the host as much as a step of a tiny model. 0: each parameter alone.

    Returns:
        The handle: `GradientRelease.remove` ends it, `GradientRelease.accumulate` holds steps back.

    Raises:
        TypeError, ValueError: for an optimizer whose step needs all gradients at once (``max_grad_norm``,
            ``skip_nonfinite``, ``amp_scaling``), one that steps in backward already, parameters of a `FlatParameters`.
        RuntimeError: here or in ``backward``, before anything of it is applied: with several processes, whose gradients
            are complete only after they have been reduced; for a backward within a backward
            (``checkpoint(use_reentrant=True)``), where nobody knows whether a gradient is complete.

    What else changes, and when it does not pay, is in docs/gradient_release.md.
    """
    if isinstance(optimizer, CPUOffload):
        raise TypeError(
            "optimizer is a CPUOffload, whose step is on the CPU; make it with free_gradients=True, which frees gradients during "
            "the backward pass as well"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of regkernels.optim, got {type(optimizer).__name__}")
    if isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int) or bucket_bytes < 0:
        raise ValueError(f"bucket_bytes must be an integer >= 0, got {bucket_bytes!r}")
    if optimizer._substitute is not None:
        raise ValueError("optimizer steps in backward already: call remove() of the handle first")
    for option, needs in _NEEDS_ALL.items():
        value = getattr(optimizer._stepper.options, option)
        if value is not None and value is not False:
            raise ValueError(
                f"{option}={value} cannot be had with steps in the backward pass: {needs} is known only when the backward "
                f"is over, and by then most parameters are updated. Make the optimizer without {option}"
            )
    return GradientRelease(optimizer, bucket_bytes)


_NEEDS_ALL = {
    "max_grad_norm": "the norm of all gradients",
    "skip_nonfinite": "whether all gradients are finite",
    "amp_scaling": "whether a scaled gradient has overflowed",
}


class GradientRelease:
    """Makes the steps of an optimizer in the backward pass; `step_in_backward` makes one.

    It and the optimizer hold on to each other. The parameters know it weakly: who drops both, ends it.
    """

    def __init__(self, optimizer: Optimizer, bucket_bytes: int) -> None:
        self._optimizer = optimizer
        self._bucket_bytes = bucket_bytes
        self._members: dict[int, Member] = {}
        self._buckets: list[Bucket] = []
        self._open: dict[torch.device, Bucket] = {}  # those that still grow
        self._layout: list[tuple[int, int]] = []
        self._updated: list[Bucket] = []  # in the last backward or step
        self._backward = -1  # which one is running, or was the last
        self._held = 0
        self._warned: list[bool] = []  # whether a parameter has said that all of this is gone
        self._lock = threading.Lock()
        _refuse_processes()
        self._look_at_groups()
        optimizer._step_by(self)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Lets ``backward`` within it only add gradients up, as without `step_in_backward`; none is freed.

        For k micro-batches, the first k - 1 in here and the last one behind it, which updates everything that has a
        gradient. So does ``optimizer.step()``.
        """
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def remove(self) -> None:
        """Lets ``backward`` leave gradients again, and ``optimizer.step()`` update. States stay. A second call does nothing."""
        for member in self._members.values():
            member.ignore()
        self._members, self._buckets, self._open, self._updated = {}, [], {}, []
        if self._optimizer._substitute is self:
            self._optimizer._step_by(None)

    # --- what the optimizer calls ---

    def step(self) -> None:
        """Updates what has a gradient, and frees that."""
        waiting = self._waiting()
        if waiting:
            self._updated = []
            self._update(waiting)

    def stats(self) -> Stats | None:
        """Returns the sums over all that the last backward, or the last step that found gradients, has updated."""
        parts = [(bucket.groups, bucket.stats) for bucket in self._updated]
        found = [(groups, stats) for groups, stats in parts if stats is not None]
        return merged(found, len(self._optimizer.param_groups)) if found else None

    def groups_changed(self) -> None:
        """Takes over param groups that were added; raises where their parameters cannot be updated here."""
        self._look_at_groups()

    # --- during a backward ---

    @outside_of_graphs
    def _arrived(self, member: Member, param: Tensor) -> None:
        """Is called by the hook of a parameter: its gradient is complete."""
        if self._held:
            return
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._begin(backward)
        if self._members.get(id(param)) is not member:  # its param group is gone
            return
        bucket = member.bucket or self._put(member)
        bucket.arrived += 1
        if param.is_cuda:
            bucket.streams.add(torch.cuda.current_stream(param.device))
        if bucket.closed and bucket.arrived == len(bucket.members):
            self._step(bucket)

    def _begin(self, backward: int) -> None:
        """Begins with the first gradient of a backward. What is not allowed is found now, before a parameter has changed."""
        with self._lock:  # each device has a thread
            if backward == self._backward:
                return
            _refuse_processes()
            _refuse_nested_backward()
            self._optimizer._stepper.check_groups(self._optimizer, self._optimizer.param_groups)
            if self._layout != _layout(self._optimizer):
                self._look_at_groups()
            for bucket in self._buckets:  # the last backward may have ended in an error
                bucket.arrived = 0
                bucket.streams.clear()
            self._updated = []
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
            self._backward = backward

    @outside_of_graphs
    def _end(self) -> None:
        """Updates what is left after the last gradient of a backward: buckets that miss one, and what was accumulated before."""
        if not self._held and self._members:
            self._update(self._waiting())

    def _waiting(self) -> list[Member]:
        """Returns what has a gradient, after a look whether param groups have changed."""
        if self._layout != _layout(self._optimizer):
            self._look_at_groups()
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not all(id(param) in self._members for param in params):  # exchanged within a param group
            self._look_at_groups()
        return [self._members[id(param)] for param in params]

    def _update(self, waiting: Sequence[Member]) -> None:
        """Steps the buckets of parameters that have a gradient."""
        for member in waiting:
            self._watch(member)  # it may have been frozen until now
            if member.bucket is None:
                self._put(member)
        self._open.clear()
        for bucket in dict.fromkeys(member.bucket for member in waiting if member.bucket is not None):
            self._step(bucket)

    def _put(self, member: Member) -> Bucket:
        """Puts a parameter into the bucket that is being filled. What that holds by the end of the backward stays together."""
        device = member.param.device
        bucket = self._open.get(device)
        if bucket is None:
            bucket = self._open[device] = Bucket()
            self._buckets.append(bucket)
        member.bucket = bucket
        bucket.members.append(member)
        bucket.closed = sum(member.param.nbytes for member in bucket.members) >= self._bucket_bytes
        if bucket.closed:
            del self._open[device]
        return bucket

    def _step(self, bucket: Bucket) -> None:
        bucket.step(self._optimizer)
        self._updated.append(bucket)
        self._optimizer._step_was_made()

    # --- param groups ---

    def _look_at_groups(self) -> None:
        """Finds all parameters of all param groups, and hooks each. Buckets are filled anew; states stay where they are."""
        before, self._members = self._members, {}
        try:
            number = 0
            for index, group in enumerate(self._optimizer.param_groups):
                names = group.get("param_names") or [""] * len(group["params"])
                for position, (param, name) in enumerate(zip(group["params"], names, strict=False)):
                    where = f"parameter {position} of param group {index}"
                    _refuse_flat(param, where)
                    member = before.pop(id(param), None) or Member(param)
                    member.group, member.number, member.bucket = index, number, None
                    member.name = f"{where} {name}".strip()
                    self._members[id(param)] = member
                    number += 1
        except ValueError:
            before.update(self._members)
            self._members = before
            raise
        for member in before.values():
            member.ignore()
        for member in self._members.values():
            self._watch(member)
        self._buckets, self._open = [], {}
        self._layout = _layout(self._optimizer)

    def _watch(self, member: Member) -> None:
        """Hooks a parameter that is trained and has no hook yet."""
        if member.hook is None and member.param.requires_grad:
            hook = Hook(self._arrived, member, self._warned)
            member.hook = member.param.register_post_accumulate_grad_hook(hook)


def _layout(optimizer: Optimizer) -> list[tuple[int, int]]:
    """Returns what is another as soon as param groups or the number of their parameters change."""
    return [(id(group["params"]), len(group["params"])) for group in optimizer.param_groups]


def _refuse_flat(param: Tensor, where: str) -> None:
    if FlatParameters.owner(param) is not None:
        raise ValueError(
            f"{where} belongs to a FlatParameters, which keeps all gradients in one buffer for good: none can be freed. "
            "Use one of the two"
        )


def _refuse_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise RuntimeError(
                f"steps in the backward pass, with {processes} processes: a gradient is complete only when it has been reduced "
                "over them, which comes later than its hook. Call optimizer.step() after the backward instead"
            )


def _refuse_nested_backward() -> None:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is BackwardCFunction.apply.__code__:
            raise RuntimeError(
                "a backward within a backward, as checkpoint(use_reentrant=True) makes it: a parameter that is used again "
                "outside of it has only a part of its gradient, so it cannot be updated here. Use checkpoint(use_reentrant=False)"
            )
        frame = frame.f_back  # type: ignore[assignment]
