"""Keys that belong elsewhere, or that are called otherwise: refused before anything changes. All others are carried along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regkernels
from regkernels import optim
from tests.support.training import network

MISPLACED: dict[str, Any] = {
    "stats": True,
    "max_grad_norm": 1.0,
    "param_rounding": "stochastic",
    "skip_nonfinite": True,
    "state_dtype": torch.bfloat16,
    "seed": 3,
    "amp_scaling": True,
    "process_group": "ranks",
}
MEANT = {
    "learning_rate": "lr",
    "grad_clip": r"max_grad_norm \(an argument of the optimizer\)",
    "embedding": r"embeddings \(an argument of regkernels\.param_groups\)",
    "regularize": "regularise of regkernels.param_groups",
    "l_1": "l1",
    "l2": r"weight_decay = 2 \* l2",
    "lasso": "l1",
    "group_lasso": "group_l1",
    "nonnegative": "positive",
    "mpc": "mcp",
    "l1_weight": "l1_weights",
    "group_size_": "group_size",
    "hubar": "huber",
    "weigth_decay": "weight_decay",
    "l1mode": "l1_mode",
    "max_norms": "max_norm",
}
USERS_OWN: dict[str, Any] = {
    "name": "a",
    "lr_scale": 0.3,
    "layer": 3,
    "initial_lr": 0.1,
    "group_id": 3,
    "trust_coefficient": 0.001,
    "rho": 0.05,
    "state": "fresh",
    "lr0": 0.1,
    "tag": None,
}
REFUSED = [
    *((key, value, f"'{key}' is an argument of the optimizer, not a key of {{}}") for key, value in MISPLACED.items()),
    *((key, 0.1, f"'{key}' is no key of {{}}; did you mean {intended}") for key, intended in MEANT.items()),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=lambda v: str(v)[:16])
def test_keys_that_would_do_nothing_are_refused(key: str, value: Any, message: str) -> None:
    model = network()
    with pytest.raises(TypeError, match=message.format("a param group")):
        regkernels.param_groups(model, l1=0.1, **{key: value})
    layers = [list(layer.parameters()) for layer in (model[0], model[2])]
    for kind in (optim.SGD, optim.CPUOffload):
        with pytest.raises(TypeError, match=message.format("param group 1")):
            kind([{"params": layers[0]}, {"params": layers[1], key: value}])
        optimizer = kind([{"params": layers[0]}])
        group = {"params": layers[1], key: value}
        with pytest.raises(TypeError, match=message.format("param group 1")):
            optimizer.add_param_group(group)
        assert group == {"params": layers[1], key: value} and len(optimizer.param_groups) == 1


def test_regularise_is_no_key_of_a_group() -> None:
    with pytest.raises(
        TypeError, match=r"'regularise' is an argument of regkernels\.param_groups, not a key of param group 0"
    ):
        optim.SGD([{"params": network().parameters(), "regularise": None}])


def test_others_are_carried_along_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    options = {**USERS_OWN, "momentum": 0.5, "betas": (0.9, 0.95), "eps": 1e-6, "lr": 0.1}
    groups = regkernels.param_groups(network(), **options)
    for group in groups:
        assert {**options, "name": group["name"]}.items() <= group.items()
    del options["lr0"]  # which an optimizer takes for a slip, and warns
    group = optim.AdamW([{"params": network().parameters(), **options}]).param_groups[0]
    assert options.items() <= group.items() and not recwarn.list


def test_arguments_that_a_wrapper_repeats_in_the_groups_are_carried_along() -> None:
    """torch.distributed.optim.ZeroRedundancyOptimizer does."""
    arguments = {**MISPLACED, "process_group": None, "amp_scaling": False}
    optimizer = optim.SGD([{"params": network().float().parameters(), **arguments}], **arguments)
    assert arguments.items() <= optimizer.param_groups[0].items()


def test_options_of_a_subclass_are_its_own() -> None:
    class Own(optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            self.defaults.setdefault("learning_rate", 1.0)
            super().add_param_group(param_group)

    assert (
        Own([{"params": [nn.Parameter(torch.ones(2))], "learning_rate": 0.5}]).param_groups[0]["learning_rate"] == 0.5
    )
