"""Bad options and parameters: the error names the argument, its value and what to do instead, and nothing has changed by then."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import (
    optim_error_inputs_func_adagrad,
    optim_error_inputs_func_adam,
    optim_error_inputs_func_adamw,
    optim_error_inputs_func_radam,
    optim_error_inputs_func_rmsprop,
    optim_error_inputs_func_sgd,
)

from regkernels import optim
from tests.support.training import each_optimizer, network, ours, train

NAN, INF = float("nan"), float("inf")
EVERY = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "RAdam", "Lion")
WITH_EPS = ("Adam", "AdamW", "RMSprop", "Adagrad", "RAdam")
WITH_BETAS = ("Adam", "AdamW", "RAdam", "Lion")
WITH_MOMENTUM = ("SGD", "RMSprop")

NUMBERS = {
    **{(key, NAN): f"{key} must be finite, got nan" for key in ("lr", "l1", "weight_decay")},
    **{(key, INF): f"{key} must be finite, got inf" for key in ("lr", "l1", "weight_decay")},
    **{(key, -0.5): f"{key} must be >= 0, got -0.5" for key in ("lr", "l1", "weight_decay")},
    **{(key, "0.1"): f"{key} must be a number, got '0.1'" for key in ("lr", "l1", "weight_decay")},
    **{(key, None): f"{key} must be a number, got None" for key in ("lr", "l1", "weight_decay")},
}
GROUP_OPTIONS: list[tuple[tuple[str, ...], dict[str, Any], type[Exception], str]] = [
    *((EVERY, {k: v}, ValueError if isinstance(v, float) else TypeError, text) for (k, v), text in NUMBERS.items()),
    (EVERY, {"lr": torch.tensor([0.1, 0.2])}, ValueError, r"lr must be a number or a tensor of one element.*\(2,\)"),
    (EVERY, {"lr": torch.tensor(NAN)}, ValueError, "lr must be finite, got nan"),
    (EVERY, {"lr": torch.tensor(-1.0)}, ValueError, "lr must be >= 0, got -1"),
    (EVERY, {"lr": 1j}, TypeError, "lr must be a number, got 1j"),
    (("Adam",), {"lr": torch.tensor(1j)}, (TypeError, ValueError), "lr must be"),
    (("Adam",), {"l1": torch.zeros((), device="meta")}, (TypeError, ValueError, RuntimeError), "l1 .*meta"),
    (EVERY, {"l1_mode": "lasso"}, ValueError, "l1_mode must be one of 'prox', 'decoupled', 'subgradient', got 'lasso'"),
    (EVERY, {"l1_mode": None}, ValueError, "l1_mode must be one of .*, got None"),
    (EVERY, {"weight_decay_mode": "l2"}, ValueError, "weight_decay_mode must be one of 'coupled', .*, got 'l2'"),
    (EVERY, {"differentiable": True}, ValueError, r"differentiable=True is not supported.*use torch\.optim"),
    (WITH_EPS, {"eps": -1e-8}, ValueError, "eps must be >= 0, got -1e-08"),
    (WITH_EPS, {"eps": NAN}, ValueError, "eps must be finite, got nan"),
    (WITH_EPS, {"eps": INF}, ValueError, "eps must be finite, got inf"),
    (WITH_BETAS, {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\), got 1.0"),
    (WITH_BETAS, {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
    (WITH_BETAS, {"betas": (0.9, -0.1)}, ValueError, r"betas\[1\] must be in \[0, 1\), got -0.1"),
    (WITH_BETAS, {"betas": (NAN, 0.9)}, ValueError, r"betas\[0\] must be finite, got nan"),
    (WITH_BETAS, {"betas": (0.9,)}, ValueError, r"betas must be a pair of numbers, got \(0.9,\)"),
    (WITH_BETAS, {"betas": (0.9, 0.9, 0.9)}, ValueError, "betas must be a pair of numbers"),
    (WITH_BETAS, {"betas": 0.9}, ValueError, "betas must be a pair of numbers, got 0.9"),
    (WITH_BETAS, {"betas": "09"}, ValueError, "betas must be a pair of numbers, got '09'"),
    (WITH_MOMENTUM, {"momentum": -0.1}, ValueError, "momentum must be >= 0, got -0.1"),
    (WITH_MOMENTUM, {"momentum": NAN}, ValueError, "momentum must be finite, got nan"),
    (("SGD",), {"dampening": INF}, ValueError, "dampening must be finite, got inf"),
    (("SGD",), {"nesterov": True}, ValueError, "nesterov=True needs momentum > 0 and dampening = 0, got momentum 0"),
    (("SGD",), {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov=True .* dampening 0.1"),
    (WITH_MOMENTUM, {"momentum": 1.0, "l1": 0.1}, ValueError, "needs momentum < 1.*got momentum 1.0.*decoupled"),
    (("SGD",), {"momentum": 0.9, "dampening": 1.0, "l1": 0.1}, ValueError, "dampening < 1.* dampening 1.0.*decoupled"),
    *((("RMSprop",), {"alpha": a}, ValueError, rf"alpha must be in \[0, 1\), got {a}") for a in (-0.1, 1.0, 1.5)),
    (("RMSprop",), {"alpha": NAN}, ValueError, "alpha must be finite, got nan"),
    (("RMSprop",), {"alpha": None}, TypeError, "alpha must be a number, got None"),
    (("Adagrad",), {"lr_decay": -0.1}, ValueError, "lr_decay must be >= 0, got -0.1"),
    (("Adagrad",), {"lr_decay": INF}, ValueError, "lr_decay must be finite, got inf"),
    (("Adagrad",), {"initial_accumulator_value": -1.0}, ValueError, "initial_accumulator_value must be >= 0, got -1.0"),
    (("Adagrad",), {"initial_accumulator_value": NAN}, ValueError, "initial_accumulator_value must be finite, got nan"),
    *(
        (("Lion",), {name: "prox"}, ValueError, f'{name}="prox" is not possible with Lion.*choose "decoupled"')
        for name in ("l1_mode", "weight_decay_mode")
    ),
    (
        WITH_MOMENTUM,
        {"momentum": 1.5, "weight_decay": 0.1, "weight_decay_mode": "prox"},
        ValueError,
        "needs momentum < 1.*got momentum 1.5.*decoupled",
    ),
]
OPTIONS = [(name, kwargs, error, text) for names, kwargs, error, text in GROUP_OPTIONS for name in names]
ONLY_ARGUMENTS = [
    *((n, {"max_grad_norm": -1.0}, ValueError, "max_grad_norm must be >= 0, got -1.0") for n in EVERY),
    *((n, {"max_grad_norm": NAN}, ValueError, "max_grad_norm must be finite, got nan") for n in EVERY),
    *((n, {"max_grad_norm": INF}, ValueError, "max_grad_norm must be finite, got inf") for n in EVERY),
    *((n, {"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number, got '1'") for n in EVERY),
    *(
        (
            n,
            {"decoupled_weight_decay": True, "weight_decay_mode": "prox"},
            ValueError,
            "contradicts .*'prox'; leave",
        )
        for n in ("Adam", "RAdam")
    ),
]


def ident(value: Any) -> str | None:
    return str(value) if isinstance(value, dict) else value if value in EVERY else ""


@pytest.mark.parametrize(("name", "kwargs", "error", "text"), [*OPTIONS, *ONLY_ARGUMENTS], ids=ident)
def test_arguments(name: str, kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        getattr(optim, name)([nn.Parameter(torch.ones(3))], **kwargs)


def snapshot(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Tensor]:
    states = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*model.parameters(), *states]]


def assert_bits(before: list[Tensor], after: list[Tensor]) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(("name", "kwargs", "error", "text"), OPTIONS, ids=ident)
def test_options_of_a_group_are_checked_when_it_is_added_and_in_each_step(
    name: str, kwargs: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = network()
    optimizer = getattr(optim, name)([{"params": layer.parameters(), "lr": 0.1} for layer in (model[0], model[2])])
    train(optimizer, model, range(2))
    before, groups = snapshot(optimizer, model), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(error, match=rf"(?s)^(?=.*param group 2).*{text}"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **kwargs})
    assert optimizer.state_dict()["param_groups"] == groups
    optimizer.param_groups[1].update(kwargs)  # the first group is fine, and must not have been updated
    with pytest.raises(error, match=rf"(?s)^(?=.*param group 1).*{text}"):
        optimizer.step()
    assert_bits(before, snapshot(optimizer, model))
    optimizer.load_state_dict({**optimizer.state_dict(), "param_groups": groups})
    train(optimizer, model, range(2, 3))
    assert not torch.equal(before[0], model[0].weight), "and training goes on"


def a_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


TWICE = a_parameter(3)
SPARSE = torch.eye(2).to_sparse().requires_grad_()
GRID = torch.ones(8, 8)
PARAMETERS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("nothing", lambda: [], ValueError, "empty parameter list"),
    ("exhausted generator", lambda: iter(()), ValueError, "empty parameter list"),
    ("string", lambda: "weight", TypeError, r"params must be an iterable.*'weight'; pass model\.parameters\(\)"),
    ("module", lambda: nn.Linear(2, 2), TypeError, r"params must be.*Linear; pass model\.parameters\(\).*param_groups"),
    ("tensor", lambda: a_parameter(2), TypeError, "params argument .* iterable of Tensors or dicts, but got torch"),
    ("state dict", lambda: nn.Linear(2, 2).state_dict(), TypeError, "only optimize Tensors.*str"),
    ("list of a list", lambda: [[a_parameter(2)]], TypeError, "only optimize Tensors.*list"),
    (
        "group, then tensor",
        lambda: [{"params": a_parameter(2)}, a_parameter(2)],
        TypeError,
        "must be a dict.*Parameter",
    ),
    ("set", lambda: [{"params": {a_parameter(2)}}], TypeError, "ordered collections.*use a list"),
    ("non-leaf", lambda: [a_parameter(2) * 2], ValueError, "non-leaf"),
    (
        "float8",
        lambda: [torch.ones(2).to(torch.float8_e4m3fn).requires_grad_()],
        TypeError,
        "float8_e4m3fn; allowed are float64",
    ),
    ("sparse", lambda: [a_parameter(2), SPARSE], TypeError, "parameter 1 of param group 0.*sparse_coo; only dense"),
    ("expanded", lambda: [torch.ones(1).expand(3).requires_grad_()], ValueError, r"expanded.*pass a clone\(\)"),
    ("same in one group", lambda: [TWICE, a_parameter(1), TWICE], ValueError, "parameter 2 .* also parameter 0"),
    ("same in two groups", lambda: [{"params": [TWICE]}, {"params": [TWICE]}], ValueError, "more than one parameter"),
    ("some named", lambda: [("a", a_parameter(2)), a_parameter(2)], ValueError, "with/without names"),
]


TORCHS = {
    name: {case.optimizer_error_input.desc: case for case in function("cpu", torch.float32)}
    for name, function in (
        ("SGD", optim_error_inputs_func_sgd),
        ("Adam", optim_error_inputs_func_adam),
        ("AdamW", optim_error_inputs_func_adamw),
        ("RMSprop", optim_error_inputs_func_rmsprop),
        ("Adagrad", optim_error_inputs_func_adagrad),
        ("RAdam", optim_error_inputs_func_radam),
    )
}
ACCEPTED = {
    "lr as Tensor doesn't work with foreach & not capturable": "foreach selects nothing here",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "foreach selects nothing here",
    "betas must be either both floats or both Tensors": "each is read as a number",
}
"""What torch's implementations cannot do, with the reason why it does not apply."""


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in TORCHS.items() for case in cases])
def test_what_torch_refuses(name: str, case: str) -> None:
    """torch's own table of errors: the same type here, or a reason to accept it."""
    given, error = TORCHS[name][case].optimizer_error_input, TORCHS[name][case].error_type
    params = given.params if given.params is not None else [a_parameter(3)]
    if case in ACCEPTED:
        optimizer = getattr(optim, name)(params, **given.kwargs)
        params[0].grad = torch.ones(3)
        optimizer.step()
        assert (params[0] < 1).all()
    else:
        with pytest.raises(ValueError if issubclass(error, Warning) else error):
            getattr(optim, name)(params, **given.kwargs)


def test_torchs_table_is_there() -> None:
    assert [len(cases) for cases in TORCHS.values()] >= [6, 9, 9, 7, 7, 8]
    assert ACCEPTED.keys() <= TORCHS["Adam"].keys()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(("params", "error", "text"), [case[1:] for case in PARAMETERS], ids=[c[0] for c in PARAMETERS])
@each_optimizer
def test_parameters(name: str, params: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"(?s){text}"):
        ours(name, params())
    optimizer = ours(name, [a_parameter(2)])
    given = params()
    if isinstance(given, list) and given and not isinstance(given[0], dict):
        with pytest.raises(error, match=re.sub("group 0", "group 1", text)):
            optimizer.add_param_group({"params": given})
    assert len(optimizer.param_groups) == 1
