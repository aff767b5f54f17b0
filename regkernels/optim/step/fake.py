"""Makes the step of parameters without values, as under ``FakeTensorMode``: creates the states of a real step, and computes nothing.

That is what estimates of memory ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from regkernels import transforms, validation
from regkernels.memory import empty_dense
from regkernels.optim.options import Options
from regkernels.optim.penalty_keys import Method
from regkernels.optim.step import counts
from regkernels.optim.step.entry import parameter_name
from regkernels.reference import RULES

Groups = Sequence[Mapping[str, Any]]
State = MutableMapping[Any, Any]


def is_fake(groups: Groups) -> bool:
    """Tells whether the parameters that have a gradient are fake; raises where some are, or where only their gradients are or are not."""
    found = [
        (transforms.is_fake(tensor), what + parameter_name(group, index, position))
        for index, group in enumerate(groups)
        for position, param in enumerate(group["params"])
        if param.grad is not None
        for what, tensor in (("", param), ("the gradient of ", param.grad))
    ]
    fakes = [name for fake, name in found if fake]
    if fakes and len(fakes) < len(found):
        real = next(name for fake, name in found if not fake)
        raise RuntimeError(
            f"{fakes[0]} is a FakeTensor and {real} has values; make model, optimizer and gradients under one FakeTensorMode, "
            "or all of them outside"
        )
    if not fakes and found and transforms.is_faking():
        raise RuntimeError(
            f"a FakeTensorMode is active, and {found[0][1]} has values; make model and optimizer under it, too, or step outside"
        )
    return bool(fakes)


def step(groups: Groups, methods: Sequence[Method], options: Options, state: State, *, counts_steps: bool) -> None:
    """Validates the parameters that have a gradient, and creates the states that they lack."""
    for index, (group, method) in enumerate(zip(groups, methods, strict=True)):
        for position, param in enumerate(group["params"]):
            if param.grad is None:
                continue
            name = parameter_name(group, index, position)
            validation.parameter(param, name)
            validation.complex_parameter(param, group["l1"], method.rule, name)
            validation.precision(options.precision, param, name)
            validation.gradient(param, param.grad, name)
            own = options.precision.of(param)
            names = [*RULES[method.rule].state_names, *([] if own.kept is None else [own.kept])]
            with param.fake_mode, torch.no_grad():
                wanted = {key: empty_dense(param, own.dtype_of(key)) for key in names}
                if counts_steps or own.draws:
                    wanted["step"] = torch.zeros(
                        (), dtype=counts.count_dtype(own), device=param.device if group.get("capturable") else "cpu"
                    )
            missing = {key: value for key, value in wanted.items() if state.get(param, {}).get(key) is None}
            if missing:
                state.setdefault(param, {}).update(missing)
