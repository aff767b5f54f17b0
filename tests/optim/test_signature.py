"""What ``inspect.signature`` and ``help`` say of the optimizers: every keyword argument by name, with the default it really has."""

from __future__ import annotations

import inspect
import pydoc
import typing
from typing import Any, Unpack

import pytest
import torch
from torch import nn

from regkernels import optim, validation
from regkernels.optim.options import DEFAULTS
from regkernels.table import formats, grouping
from tests.support.training import each_optimizer, network, ours, train

EVERY = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.RAdam, optim.Lion]


class Inherited(optim.AdamW):
    pass


class Extended(optim.AdamW):
    def __init__(self, params: Any, lr: float = 0.5, **common: Unpack[optim.Common]) -> None:
        super().__init__(params, lr, **common)


class Own(optim.SGD):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)


def test_every_key_has_a_default() -> None:
    assert DEFAULTS.keys() == optim.Common.__annotations__.keys(), "what docstrings and signatures promise"


@pytest.mark.parametrize("kind", [*EVERY, Inherited, Extended], ids=lambda kind: kind.__name__)
def test_the_signature_names_what_all_optimizers_share(kind: Any) -> None:
    shown = inspect.signature(kind).parameters
    assert not [one for one in shown.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    for name in optim.Common.__annotations__:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY and shown[name].default == DEFAULTS[name]
    for name, default in (
        ("stats", False),
        ("max_grad_norm", None),
        ("group_l1", 0.0),
        ("mcp_gamma", 3.0),
        ("seed", 0),
    ):
        assert shown[name].default == default
    assert shown["lr"].default == (
        0.5 if kind is Extended else inspect.signature(kind.__init__).parameters["lr"].default
    )
    assert "stats: bool = False" in pydoc.render_doc(kind, renderer=pydoc.plaintext)


def test_a_constructor_that_passes_arguments_on_in_another_way_keeps_its_signature() -> None:
    assert str(inspect.signature(Own)).replace("'", "") in (
        "(params: Any, **options: Any) -> None",
        "(params: Any, **options: Any)",
    )

    class Local: ...

    class Unresolved(optim.SGD):
        def __init__(self, params: Local, **common: Unpack[optim.Common]) -> None: ...

    assert "common" in inspect.signature(Unresolved).parameters


@each_optimizer
def test_the_defaults_are_those_that_are_taken_where_nobody_gives_any(name: str) -> None:
    results = []
    for options in ({}, DEFAULTS):
        torch.manual_seed(0)
        model = network()
        optimizer = ours(name, model.parameters(), **options)
        train(optimizer, model, range(3))
        results.append([*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with pytest.raises(AttributeError, match="stats"):
        optimizer.stats  # noqa: B018


@pytest.mark.parametrize(
    ("argument", "alias", "allowed"),
    [
        ("l1_mode", validation.L1Mode, validation.L1_MODES),
        ("weight_decay_mode", validation.WeightDecayMode, validation.WEIGHT_DECAY_MODES),
        ("param_rounding", formats.Rounding, formats.ROUNDINGS),
        ("group_weight", grouping.Weighting, grouping.WEIGHTS),
    ],
)
def test_what_may_be_chosen_is_part_of_the_type(argument: str, alias: Any, allowed: tuple[str, ...]) -> None:
    for kind in EVERY:
        annotation = inspect.signature(kind).parameters[argument].annotation
        assert annotation in (alias, typing.Optional[alias])  # noqa: UP045
    for choice in allowed:
        param = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        optim.SGD([param], lr=0.1, **{argument: choice})
    with pytest.raises(ValueError, match=f"{argument} must be one of {', '.join(map(repr, allowed))}"):
        optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, **{argument: "other"})
