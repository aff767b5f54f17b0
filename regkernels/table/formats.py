"""Says in which formats weights and states are stored, and what is stored beside them."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Weight types, in the order of csrc/lists.h."""

Rounding = Literal["nearest", "stochastic", "remainder", "master"]

ROUNDINGS = get_args(Rounding)
"""How half-precision weights are rounded, in the order of csrc/lists.h."""

KEPT_DTYPES = {"remainder": torch.int16, "master": torch.float32}
"""The state that a rounding adds to those of the rule, under its own name."""


FORMATS = len(DTYPES) * 2 * len(ROUNDINGS)
"""How many pairs of a format and a weight type there are."""


def format_number(dtype: torch.dtype, narrow: bool, rounding: str) -> int:
    """Returns the number that kernels know a weight type, states in fewer bits, and a rounding by."""
    return (DTYPES.index(dtype) * 2 + narrow) * len(ROUNDINGS) + ROUNDINGS.index(rounding)


def format_of(number: int) -> tuple[torch.dtype, bool, str]:
    """Returns what `format_number` was given: it is the inverse."""
    formats, rounding = divmod(number, len(ROUNDINGS))
    return DTYPES[formats // 2], bool(formats % 2), ROUNDINGS[rounding]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type that weights of ``dtype`` are updated in, and that their states have: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Format(NamedTuple):
    """Says how one parameter is rounded, and in which type its states are."""

    rounding: str
    states: torch.dtype  # of the rule's states
    narrow: bool  # states in fewer bits than they are computed in

    @property
    def kept(self) -> str | None:
        """Names the state that the rounding adds; None where it adds none."""
        return self.rounding if self.rounding in KEPT_DTYPES else None

    @property
    def draws(self) -> bool:
        """Tells whether a step needs random numbers, and with them the number of the step."""
        return self.narrow or self.rounding == "stochastic"

    def dtype_of(self, name: str) -> torch.dtype:
        """Returns the type of the state ``name``."""
        return KEPT_DTYPES[name] if name == self.kept else self.states


class Precision(NamedTuple):
    """Holds what an optimizer was asked for: ``param_rounding``, ``state_dtype`` and ``seed``."""

    rounding: str = "nearest"
    state_dtype: torch.dtype | None = None
    seed: int = 0

    def of(self, param: Tensor) -> Format:
        """Returns the format of a parameter; `regkernels.validation.precision` says which are refused."""
        if param.is_complex():
            states = torch.complex128 if param.dtype == torch.complex128 else torch.complex64
            return Format("nearest", states, narrow=False)
        computed = compute_dtype(param.dtype)
        rounding = self.rounding if param.dtype.itemsize < 4 else "nearest"
        states = self.state_dtype or computed
        return Format(rounding, states, narrow=states.itemsize < computed.itemsize)
