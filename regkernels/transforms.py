"""Tells which tensors have no memory to look at: those of torch.func's transforms, fake ones; and whether a derivative is under way
that kernels do not know.

What torch offers for that is private, so it stands here only. Where a version of torch lacks it, the answer is no; and where dynamo
traces a function, which knows nothing of it: the operators that it records find out when they are called.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch: Any = getattr(torch._C, "_functorch", None)
_transforming: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_is_wrapped: Any = getattr(_functorch, "is_functorch_wrapped_tensor", lambda tensor: False)
_unwrapped: Any = getattr(_functorch, "get_unwrapped", lambda tensor: tensor)

_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_fake_key: Any = getattr(getattr(torch._C, "_TorchDispatchModeKey", None), "FAKE", None)

_PLAIN = (Tensor, torch.nn.Parameter)


def active() -> bool:
    """Tells whether a transform of torch.func is running, or forward-mode differentiation."""
    if torch.compiler.is_dynamo_compiling():
        return False
    return _transforming() or getattr(forward_ad, "_current_level", -1) >= 0


def is_wrapped(tensor: Tensor) -> bool:
    """Tells whether a tensor stands for others within a transform of torch.func."""
    if torch.compiler.is_dynamo_compiling():
        return False
    return _transforming() and _is_wrapped(tensor)  # type: ignore[no-any-return]


def is_fake(tensor: Any) -> bool:
    """Tells whether a tensor has a shape but no values, as under ``FakeTensorMode``."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def is_faking() -> bool:
    """Tells whether a ``FakeTensorMode`` is active."""
    return _fake_key is not None and torch._C._get_dispatch_mode(_fake_key) is not None


def address(tensor: Tensor) -> int:
    """Returns where a tensor lies in memory; 0 for a fake one, which torch warns to ask."""
    return 0 if is_fake(tensor) else tensor.data_ptr()


def innermost(tensor: Tensor) -> Tensor:
    """Returns what a tensor of torch.func stands for, with all batches; any other tensor itself."""
    while is_wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor


def hides(tensor: Tensor) -> bool:
    """Tells whether the address of a tensor means nothing, or asking for it is an error."""
    return is_wrapped(tensor) or is_fake(tensor)


def unreadable(tensor: Tensor) -> bool:
    """Tells whether a value cannot be looked at: there is none, or operations are recorded, as by make_fx, and none is to depend on it."""
    return hides(tensor) or (not torch.compiler.is_dynamo_compiling() and _modes() > 0)
