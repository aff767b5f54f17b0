"""Lets a parameter tell a release that its gradient is complete, without keeping it alive."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from regkernels.dynamo import outside_of_graphs
from regkernels.optim.release.buckets import Member


class Hook:
    """Stands at a parameter, and holds on to nothing: autograd keeps hooks where the garbage collector does not see them, so that what
    one refers to would live as long as its parameter, which is among it."""

    def __init__(self, arrived: Callable[[Member, Tensor], None], member: Member, warned: list[bool]) -> None:
        """Calls the method ``arrived`` for the parameter of ``member``. ``warned``: what hooks of one release have in common."""
        self._arrived: Any = weakref.WeakMethod(arrived)
        self._member, self._warned = weakref.ref(member), warned
        _latest[member.param] = self

    @outside_of_graphs
    def __call__(self, param: Tensor) -> None:
        arrived, member = self._arrived(), self._member()
        if arrived is not None and member is not None:
            arrived(member, param)
        elif not self._warned and _latest.get(param) is self:
            self._warned.append(True)
            warnings.warn(
                "the optimizer that stepped in the backward pass is gone: gradients are left in param.grad, and nobody updates "
                "these parameters. Keep the optimizer, or what step_in_backward returns, as long as you train; call remove() of the "
                "latter before you drop both",
                RuntimeWarning,
                stacklevel=2,
            )


_latest: Any = WeakIdKeyDictionary()
"""The hook of each parameter that came last: of one whose optimizer is gone, and which another has taken over, nobody wants to hear."""
