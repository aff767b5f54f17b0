"""Mirrors a parameter on a device by one on the CPU, which an optimizer updates in its place."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from regkernels import validation
from regkernels.distributed.shards import held, is_dtensor, is_spread_alike, spread_as, spread_like, trace
from regkernels.dynamo import outside_of_graphs
from regkernels.flat import FlatParameters
from regkernels.optim.offload.pinned import Lane, allocate

_takers: Any = WeakIdKeyDictionary()
"""Which mirror takes a parameter's gradients during backward: that of the latest optimizer."""


class Mirror:
    """Holds what the CPU has of a parameter: a weight, a gradient, and what is known about where they come from.

    Attributes:
        param: the parameter.
        host: the one on the CPU that stands for it, of the same type, shape and strides.
        holds: whether a gradient has left the device for good and waits here for a step.
    """

    def __init__(self, param: Tensor, lane: Lane, buffers: tuple[Tensor, Tensor] | None) -> None:
        """Makes the parameter on the CPU. ``buffers``: for weight and gradient; None for one that is frozen, or has no shape yet."""
        self.param, self.lane = param, lane
        self.holds = False
        self._weight: Tensor | None = None
        self._gradient: Tensor | None = None
        self._later: Tensor | None = None  # the gradient of a further backward, to be added
        self._later_event: Any = None
        self._adds = False
        self._seen: tuple[int, ...] | None = None
        self._hook: Any = None
        self._layout = _layout(param)
        self.host: Any
        if isinstance(param, nn.UninitializedParameter):
            shapeless: Any = nn.UninitializedParameter  # whose arguments its stub does not know
            self.host = shapeless(param.requires_grad, device="cpu", dtype=param.dtype)
            return
        if buffers is None:
            (self._weight,) = allocate([held(param)], pinned=False)
        else:
            self._weight, self._gradient = buffers
        self.host = nn.Parameter(spread_like(self._weight, param), requires_grad=param.requires_grad)

    def fits(self) -> bool:
        """Tells whether the parameter still has the type, shape and strides that it had."""
        return _layout(self.param) == self._layout

    # --- gradients ---

    def watch(self) -> None:
        """Lets every backward bring its gradient here, and free it on the device."""
        shapeless = isinstance(self.param, nn.UninitializedParameter)  # takes no hooks
        if self._hook is None and self.param.requires_grad and not shapeless:
            self._hook = self.param.register_post_accumulate_grad_hook(self._arrived)
            _takers[self.param] = weakref.ref(self)

    def ignore(self) -> None:
        """Leaves gradients to the backward pass again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @outside_of_graphs
    def _arrived(self, param: Tensor) -> None:
        """Is called in a backward, when the gradient of ``param`` is complete for this process."""
        grad, taker = param.grad, _takers.get(param)
        if grad is None or taker is None or taker() is not self or not self.fits() or _has_yet_to_be_reduced(param):
            return
        if grad.layout == torch.strided and grad.dtype == param.dtype and is_spread_alike(grad, param):
            self.take()  # others are left to the step, which says what is wrong

    @torch.no_grad()
    def take(self) -> None:
        """Fetches the gradient and frees it on the device; it is added to one that waits here."""
        if self.holds:
            self.add_later()
            if self._later is None:
                (self._later,) = allocate([held(self.param)], pinned=self.lane.pins)
            self._later_event = self.lane.fetch(self._gradient_on_device(), self._later)
            self._adds = True
        else:
            self.fetch_gradient()
            self.holds = True
        self.param.grad = None

    def fetch_gradient(self) -> None:
        """Starts to copy the gradient to the CPU."""
        self.lane.fetch(self._gradient_on_device(), self._room())

    def add_later(self) -> None:
        """Adds the gradient of a further backward, as soon as it has arrived. In the order and type of autograd."""
        if self._adds and self._later is not None:
            if self._later_event is not None:
                self._later_event.synchronize()
            self._room().add_(self._later)
            self._adds, self._later_event = False, None

    def hand_over(self) -> None:
        """Makes the gradient, which has arrived, that of `host`."""
        self.add_later()
        self.host.grad = spread_like(self._room(), self.param)

    def drop(self) -> None:
        """Forgets the gradient."""
        self.holds, self._adds, self.host.grad = False, False, None

    def _gradient_on_device(self) -> Tensor:
        return held(spread_as(self.param.grad, self.param)).detach()

    def _room(self) -> Tensor:
        """Returns the memory for the gradient, which is allocated when first needed."""
        if self._gradient is None:
            (self._gradient,) = allocate([held(self.param)], pinned=self.lane.pins)
        return self._gradient

    # --- weights ---

    def fetch_weight(self) -> None:
        """Starts to copy the weight to the CPU, where it is not the one that was sent last: the first time, and when somebody has
        set it."""
        if self._seen != trace(self.param):
            assert self._weight is not None
            self.lane.fetch(held(self.param).detach(), self._weight)
            self._seen = trace(self.param)

    def send_weight(self) -> None:
        """Starts to copy the weight to the device."""
        assert self._weight is not None
        self.lane.send(self._weight, held(self.param).detach())
        if is_dtensor(self.param):  # its own count, beside that of its local tensor
            torch.autograd.graph.increment_version(self.param)
        self._seen = trace(self.param)

    def forget_weight(self) -> None:
        """Lets the next step fetch the weight, whether or not it looks changed."""
        self._seen = None


def mirrors_of(params: Sequence[tuple[Tensor, str]], lanes: dict[torch.device, Lane]) -> list[Mirror]:
    """Makes mirrors for parameters, with their names for messages; raises before anything is allocated."""
    for param, name in params:
        check(param, name)
    validation.no_shared_memory(
        (held(param).detach(), name) for param, name in params if not isinstance(param, nn.UninitializedParameter)
    )
    lanes.update({device: Lane(device) for device in {param.device for param, _ in params} - lanes.keys()})
    found: dict[int, Mirror] = {}
    for device in dict.fromkeys(param.device for param, _ in params):
        own = [param for param, _ in params if param.device == device and param.requires_grad]
        own = [param for param in own if not isinstance(param, nn.UninitializedParameter)]
        local = [held(param) for param in own]
        pinned = lanes[device].pins
        pairs = zip(allocate(local, pinned=pinned), allocate(local, pinned=pinned), strict=True)
        found.update({id(param): Mirror(param, lanes[device], pair) for param, pair in zip(own, pairs, strict=True)})
    return [found.get(id(param)) or Mirror(param, lanes[param.device], None) for param, _ in params]


def check(param: Tensor, name: str) -> None:
    """Raises for what cannot be updated, or cannot be moved to the CPU."""
    validation.parameter(param, name)
    if FlatParameters.owner(param) is not None:
        raise ValueError(
            f"{name} belongs to a FlatParameters, which keeps weights and gradients in buffers on the device; CPUOffload has "
            "buffers of its own on the CPU: give it the parameters of a model that was not flattened"
        )


def _layout(param: Tensor) -> tuple[Any, ...]:
    """Returns what a mirror has to have in common with its parameter."""
    if isinstance(param, nn.UninitializedParameter):
        return (None, param.dtype, param.device)
    own = held(param)
    return (own.shape, param.dtype, param.device, own.stride(), param.shape)


def _has_yet_to_be_reduced(param: Tensor) -> bool:
    """Tells whether the gradient of a parameter whose hook runs may not be complete.

    With several processes, autograd calls hooks before anybody has reduced it. FSDP2 calls them itself, when that is done.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    node = torch._C._current_autograd_node()
    return not is_dtensor(param) or getattr(node, "variable", None) is param
