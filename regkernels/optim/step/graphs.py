"""Checks what a step needs that is captured into a CUDA graph, and raises before anything is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels.backends import extension
from regkernels.table.upload import capturing


def capturable(param: Tensor, group: Mapping[str, Any], name: str, *, interpreted: bool) -> None:
    """Raises where a parameter of a param group that asks for ``capturable``, or an option, is not on an accelerator.

    ``interpreted``: the interpreter plays the accelerator.
    """
    if not group.get("capturable"):
        return
    if param.device.type == "cpu" and not interpreted:
        raise ValueError(
            f"capturable=True needs parameters on an accelerator, but {name} is on the CPU. (torch.compile sets it when a "
            "compiled function assigns to optimizer.param_groups: do that outside of it)"
        )
    for key in ("lr", "l1", "weight_decay", "betas"):
        values = group.get(key)
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, Tensor) and value.device != param.device:
                raise ValueError(
                    f"{key} is a tensor on {str(value.device)!r} and {name} is on {str(param.device)!r}: with capturable=True "
                    f"a graph could not see it change; make it a tensor there, or a float if it never changes"
                )


def not_capturing() -> None:
    """Raises while a graph is captured: what would be done again at every replay must have been done before."""
    if not capturing():
        return
    if not extension.keeps_plans():
        raise RuntimeError(
            "a CUDA graph is being captured, which takes the compiled extension: without it each step looks at all "
            f"parameters anew. {extension.HOW_TO_BUILD}"
        )
    raise RuntimeError(
        "this step would have to create states or look at all parameters anew, which a CUDA graph cannot record; run a "
        "step with the same parameters and gradients before torch.cuda.graph(...)"
    )


def capture(devices: Sequence[torch.device], counting_groups: Iterable[Mapping[str, Any]]) -> None:
    """Raises where a step is captured that a replay could not repeat. ``counting_groups``: param groups that count steps."""
    if not capturing():
        return
    for device in devices:
        if device != torch.device("cuda", torch.cuda.current_device()):
            raise RuntimeError(
                f"a CUDA graph is being captured on cuda:{torch.cuda.current_device()}, and there are parameters on "
                f"{str(device)!r}, whose step a replay would leave out; give those an optimizer of their own"
            )
    if not all(group.get("capturable") for group in counting_groups):
        raise RuntimeError(
            "a CUDA graph is being captured, and capturable is not set: each replay would repeat this step with the same "
            "step count; make the optimizer with capturable=True"
        )
