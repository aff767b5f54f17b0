"""What torch's operations do with tensors of simulated devices: most are put into a queue, some make the host wait."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.simulated.simulation import Simulation
from tests.support.simulated.streams import Wait
from tests.support.simulated.tensors import OnDevice, spoil, unwrapped

WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
"""Operations whose outcome, or its shape, the host has to know."""


class Mode(TorchDispatchMode):
    """Takes factories, and what is done with page-locked memory, which no tensor of a device is an argument of."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(self._simulation, func, args, kwargs or {})


def dispatch(simulation: Simulation, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return torch.device("cuda", args[0].block.device)
    name = func._schema.name.partition("::")[2]
    if name == "is_pinned":
        return not isinstance(args[0], OnDevice) and simulation.is_pinned(args[0])
    if name in ("_pin_memory", "pin_memory"):
        return simulation.pin(args[0].clone())
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Mode(simulation):  # within an operator of the package nobody has taken it apart
            return func.decompose(*args, **kwargs)
    if kwargs.get("pin_memory"):
        if torch.device(kwargs.get("device") or "cpu").type != "cpu":
            raise RuntimeError("only memory of the CPU can be page-locked")
        return simulation.pin(func(*args, **{**kwargs, "pin_memory": False}))
    if name in ("copy_", "_to_copy"):
        return _copied(simulation, func, args, kwargs)
    on = _device(simulation, func, args, kwargs)
    if on is None:
        return func(*args, **kwargs)
    if func.namespace == "regkernels":  # whose implementation launches kernels, and is what is looked at
        with Mode(simulation):
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
    if isinstance(kwargs.get("device"), torch.device):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name in WAITS or (name.startswith("index") and _is_selected_on_host(args)):
        simulation.wait(name, on)
        return _wrapped(simulation, func(*unwrapped(args), **unwrapped(kwargs)), on)
    return _queued(simulation, func, args, kwargs, on)


def _device(simulation: Simulation, func: Any, args: Any, kwargs: dict[str, Any]) -> int | None:
    """Which device works; None for the CPU. Raises where tensors lie on several."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    devices = {tensor.block.device for tensor in tensors if isinstance(tensor, OnDevice)}
    asked = kwargs.get("device")
    if isinstance(asked, torch.device) and asked.type == "cuda":
        devices.add(simulation.device if asked.index is None else asked.index)
    if not devices:
        return None
    takes_indices = func._schema.name.startswith("aten::index")
    takes_numbers = torch.Tag.pointwise in func.tags or func._schema.name.startswith("aten::fill")
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    is_mixed = len(devices) > 1 or any(tensor.dim() or not takes_numbers for tensor in on_cpu)
    if is_mixed and not takes_indices:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    return devices.pop()


def _is_selected_on_host(args: Any) -> bool:
    """Tells whether an index has to be copied to the device first, or its length is known there only."""
    indices = (
        [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)]
        if isinstance(args[1], (list, tuple))
        else []
    )
    return any(not isinstance(index, OnDevice) or index.dtype in (torch.bool, torch.uint8) for index in indices)


def _wrapped(simulation: Simulation, result: Any, on: int) -> Any:
    return tree_map(
        lambda leaf: OnDevice.fresh(leaf, on, simulation) if isinstance(leaf, Tensor) else leaf,
        result,
    )


def _queued(simulation: Simulation, func: Any, args: Any, kwargs: dict[str, Any], on: int) -> Any:
    returns = [of.alias_info for of in func._schema.returns]
    host_args, host_kwargs = tree_map(_kept, (args, kwargs))
    if any(alias is not None and not alias.is_write for alias in returns):  # a view
        base = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        seen = func(*host_args, **host_kwargs)
        if not isinstance(base, OnDevice):
            return _wrapped(simulation, seen, on)
        return tree_map(lambda leaf: OnDevice(leaf, base.block, simulation) if isinstance(leaf, Tensor) else leaf, seen)
    writes = not returns or any(alias is not None for alias in returns)
    if writes:
        simulation.submit(lambda: func(*host_args, **host_kwargs), on)
        given = kwargs["out"] if "out" in kwargs else args[0]
        return given if returns else None
    made = func(*host_args, **host_kwargs)  # for its shapes
    if not simulation.late and simulation.recording is None:
        return _wrapped(simulation, made, on)
    outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
    for output in outputs:
        spoil(output)

    def compute() -> None:
        again = [leaf for leaf in tree_leaves(func(*host_args, **host_kwargs)) if isinstance(leaf, Tensor)]
        for output, value in zip(outputs, again, strict=True):
            output.copy_(value)

    simulation.submit(compute, on)
    return _wrapped(simulation, made, on)


def _kept(leaf: Any) -> Any:
    """What an operation is given when it is done: a number on the CPU is what it was when the host asked for it."""
    if isinstance(leaf, OnDevice):
        return leaf.memory
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _copied(simulation: Simulation, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Copies between host and devices: page-locked and asynchronous, or the host waits."""
    is_new = func._schema.name == "aten::_to_copy"
    source = args[0] if is_new else args[1]
    quick = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    from_device = source.block.device if isinstance(source, OnDevice) else None
    if not is_new:
        target = args[0]
        to_device = target.block.device if isinstance(target, OnDevice) else None
    else:
        asked = kwargs.get("device") or source.device
        to_device = (simulation.device if asked.index is None else asked.index) if asked.type == "cuda" else None
        if from_device is None and to_device is None:
            return func(*args, **kwargs)
        memory = func(unwrapped(source), **{**kwargs, "device": torch.device("cpu")})
        if quick and to_device is None:
            simulation.pin(memory)
        spoil(memory)
        target = memory if to_device is None else OnDevice.fresh(memory, to_device, simulation)
    if from_device is None and to_device is None:
        return func(*args, **kwargs)
    own, other = unwrapped(target), unwrapped(source)
    for host in (source, target):
        if not isinstance(host, OnDevice) and not (quick and simulation.is_pinned(host)):
            device: Any = to_device if from_device is None else from_device
            if host is source and not simulation.recording:
                other = source.clone()
            simulation.wait(f"a copy between cuda:{device} and memory that is not page-locked", device)
            own.copy_(other)
            return target
    _start(simulation, own, other, from_device, to_device)
    return target


def _start(simulation: Simulation, own: Tensor, other: Tensor, source: int | None, target: int | None) -> None:
    if source is None and simulation.recording is not None:
        held, memory = weakref.ref(other), other.detach()

        def copy() -> None:
            assert held() is not None, "a replay copies from page-locked memory that was freed"
            own.copy_(memory)

        simulation.submit(copy, target or 0)
        return
    first = target if source is None else source
    assert first is not None
    if source is not None and target is not None and source != target:  # each stream waits for the other
        there, here = simulation.current[target], simulation.current[source]
        here.queue.append(Wait(there.mark()))
        simulation.submit(lambda: own.copy_(other), source)
        there.queue.append(Wait(here.mark()))
        return
    simulation.submit(lambda: own.copy_(other), first)
