"""Writes down arithmetic with numbers that only a device knows, so that the device can do all of it at once.

In torch each operation on such a number is a launch of its own, and a row of hyper-parameters takes dozens of them.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from regkernels.table.root import square_root

READ_IN_PLACE = (torch.float32, torch.float64)
"""Types of the numbers that need not be copied first."""

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.true_divide,
    "power": torch.pow,
    "root": square_root,
    "floor": torch.floor,
    "is_greater": torch.gt,
    "is_equal": torch.eq,
    "choose": lambda condition, value, otherwise: torch.where(condition != 0, value, otherwise),
}
"""What can be written down, and what torch calls it. Conditions are 1 or 0; exponents are whole numbers, not negative: of others kernels
make NaN."""


def _with_other(operation: str) -> tuple[Callable[[Deferred, Any], Deferred], Callable[[Deferred, Any], Deferred]]:
    """Returns the methods that write down an operation of two numbers, and of the same in the other order."""
    return lambda own, other: Deferred(operation, own, other), lambda own, other: Deferred(operation, other, own)


def _unknown(what: str) -> TypeError:
    return TypeError(
        f"a number that only a device knows was {what}: write arithmetic, > and <, regkernels.table.hyper.select and square_root, which the "
        "device does later"
    )


class Deferred:
    """Stands for a float64 number that a device computes later, or for a vector of them.

    Attributes:
        operation: one of OPERATIONS; empty where the number lies in device memory.
        operands: what the operation is applied to.
        tensor: where the number lies, of a type of READ_IN_PLACE; it is read when the row is computed.
        count: how many numbers it is.
    """

    __slots__ = ("count", "operands", "operation", "tensor")

    tensor: Tensor | None

    def __init__(self, operation: str, *operands: float | Tensor | Deferred) -> None:
        """Writes an operation down."""
        self.operation, self.tensor = operation, None
        self.operands = tuple(one if isinstance(one, Deferred) else _noted(one) for one in operands)
        self.count: int = max(one.count if isinstance(one, Deferred) else 1 for one in self.operands)

    @classmethod
    def of(cls, tensor: Tensor) -> Deferred:
        """Stands for what lies in a tensor of one element, or in a vector."""
        own = object.__new__(cls)
        tensor = tensor.detach().reshape(() if tensor.numel() == 1 else -1).contiguous()
        in_place = tensor.dtype in READ_IN_PLACE and not tensor.is_neg()
        own.operation, own.operands, own.count = "", (), tensor.numel()
        own.tensor = tensor if in_place else tensor.double()
        return own

    __add__, __radd__ = _with_other("add")
    __sub__, __rsub__ = _with_other("subtract")
    __mul__, __rmul__ = _with_other("multiply")
    __truediv__, __rtruediv__ = _with_other("divide")
    _power, __rpow__ = _with_other("power")
    __gt__, __lt__ = _with_other("is_greater")
    __hash__ = (
        object.__hash__
    )  # of dictionaries a number is the key by what it is: no two have one hash, and == is not asked

    def __pow__(self, exponent: float | Tensor | Deferred) -> Deferred:
        if isinstance(exponent, (int, float)) and not (exponent >= 0 and float(exponent).is_integer()):
            raise ValueError(
                f"exponent {exponent}: of a number that only a device knows, powers are whole and not negative; sqrt() is its root"
            )
        return self._power(exponent)

    def __eq__(self, other: object) -> NoReturn:
        raise _unknown("compared by == or !=")

    def __bool__(self) -> NoReturn:
        raise _unknown("asked whether it is 0, as by if, max and min")

    def __repr__(self) -> str:
        return f"Deferred({self.operation or self.tensor!r}, of {self.count})"

    def __neg__(self) -> Deferred:
        return self * -1.0

    def sqrt(self) -> Deferred:
        return Deferred("root", self)

    def __mod__(self, other: float) -> Deferred:
        return self - Deferred("floor", self / other) * other

    def computed(self, device: torch.device, known: MutableMapping[Deferred, Tensor]) -> Tensor:
        """Returns what torch computes on ``device``, float64. ``known``: what it has computed there already; filled."""
        if self not in known:
            if self.tensor is None:
                operands = [
                    one.computed(device, known)
                    if isinstance(one, Deferred)
                    else torch.full(
                        (), one, dtype=torch.float64, device=device
                    )  # no number: torch divides by one inexactly
                    for one in self.operands
                ]
                known[self] = OPERATIONS[self.operation](*operands).double()
            else:
                known[self] = self.tensor.to(device, torch.float64)
        return known[self]

    def __float__(self) -> float:
        return self.computed(torch.device("cpu"), {}).item()


def _noted(operand: float | Tensor) -> float | Deferred:
    return Deferred.of(operand) if isinstance(operand, Tensor) else float(operand)
