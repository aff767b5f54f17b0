"""Finds tensors of a state dict whose memory was freed, before anything reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regkernels import validation
from regkernels.distributed.shards import held


def check_memory_of_states(state_dict: Mapping[str, Any]) -> None:
    """Raises where a tensor among the states has no memory, naming it. What else is wrong with a state dict is no matter here."""
    states = state_dict.get("state")
    for number, state in states.items() if isinstance(states, Mapping) else ():
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and not value.is_sparse:
                validation.addressable(held(value), f"the state {key!r} of parameter {number} in the state dict")
