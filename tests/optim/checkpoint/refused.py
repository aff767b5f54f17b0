"""State dicts that do not fit, as data: how each is made, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regkernels import optim
from tests.optim.checkpoint.cases import snapshot
from tests.support.training import network, train

Packed = dict[str, Any]
NAN = float("nan")


def by_name(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [{"params": named[:2], "lr": 0.03}, {"params": named[2:]}]


def saved(kind: str, model: nn.Module, module: Any = optim, **options: Any) -> Packed:
    optimizer = getattr(module, kind)(by_name(model), **options)
    train(optimizer, model, range(2))
    return snapshot(optimizer.state_dict())


def _edit(change: Callable[[Packed], Any]) -> Callable[[Packed], Packed]:
    def edited(packed: Packed) -> Packed:
        change(packed)
        return packed

    return edited


def _state(key: str, value: Any) -> Callable[[Packed], Packed]:
    """With another value for a state of the second parameter; a function makes it from the old one."""

    def edited(packed: Packed) -> Packed:
        state = packed["state"][1]
        state[key] = value(state[key]) if callable(value) else value
        return packed

    return edited


def _group(index: int = 0, **options: Any) -> Callable[[Packed], Packed]:
    return _edit(lambda packed: packed["param_groups"][index].update(options))


def _from(kind: str, module: Any = torch.optim, **options: Any) -> Callable[[Packed], Packed]:
    return lambda packed: saved(kind, network(torch.float32), module, **options)


def _without_options(packed: Packed) -> Packed:
    """As some trainers save it: states alone."""
    return {**packed, "param_groups": [{"params": group["params"]} for group in packed["param_groups"]]}


def _renumbered(packed: Packed) -> Packed:
    return {**packed, "state": {str(key): state for key, state in packed["state"].items()}}


def swapped(packed: Packed) -> Packed:
    """The dict of a model whose first two parameters stand in the other order."""
    packed["state"][0], packed["state"][1] = packed["state"][1], packed["state"][0]
    packed["param_groups"][0]["param_names"].reverse()
    return packed


def _wrapped_and_swapped(packed: Packed) -> Packed:
    packed = swapped(packed)
    for group in packed["param_groups"]:
        group["param_names"] = [f"module._orig_mod.{name}" for name in group["param_names"]]
    return packed


def _no_names(packed: Packed) -> Packed:
    for group in packed["param_groups"]:
        del group["param_names"]
    return packed


def _moved_to_the_other_group(packed: Packed) -> Packed:
    first, second = packed["param_groups"]
    for key in ("params", "param_names"):
        first[key], second[key] = second[key], first[key]
    return packed


NAME = r"parameter 1 of param group 0 \(0.bias\)"
REFUSED: dict[str, tuple[str, Callable[[Packed], Any], type[Exception], str]] = {
    # what is loaded into (see OPTIMIZERS), the change of its own state dict, the error, the message
    "a path": (
        "adam",
        lambda packed: "checkpoint.pt",
        TypeError,
        "must be a dict.*got str: 'checkpoint.pt'.*torch.load",
    ),
    "None": ("adam", lambda packed: None, TypeError, "must be a dict.*got NoneType"),
    "the whole checkpoint": (
        "adam",
        lambda packed: {"model": {}, "optimizer": packed},
        ValueError,
        "no key 'param_groups', only 'model', 'optimizer'.*only that part",
    ),
    "an empty dict": ("adam", lambda packed: {}, ValueError, "no key 'param_groups', only nothing"),
    "no states": ("adam", _edit(lambda packed: packed.pop("state")), ValueError, "no key 'state'"),
    "states in a list": ("adam", lambda packed: {**packed, "state": []}, TypeError, "'state' must be a dict, got list"),
    "groups in a dict": (
        "adam",
        lambda packed: {**packed, "param_groups": packed["param_groups"][0]},
        TypeError,
        "'param_groups' must be a list of dicts, got dict",
    ),
    "a group without params": (
        "adam",
        _edit(lambda packed: packed["param_groups"][1].pop("params")),
        TypeError,
        "'params' of param group 1 of the state dict must be a list of ids, got NoneType",
    ),
    "a group too few": (
        "adam",
        _edit(lambda packed: packed["param_groups"].pop()),
        ValueError,
        "another number of parameter groups: 1, this optimizer has 2",
    ),
    "a parameter too few": (
        "adam",
        _edit(lambda packed: packed["param_groups"][0]["params"].pop()),
        ValueError,
        "param group 0 of the state dict has 1 parameters.*size of optimizer's group: 2",
    ),
    "names too few": (
        "adam",
        _edit(lambda packed: packed["param_groups"][0]["param_names"].pop()),
        ValueError,
        "param group 0 of the state dict has 1 param_names for 2 parameters",
    ),
    "an id twice": ("adam", _group(1, params=[2, 2]), ValueError, "list the id 2 twice"),
    "ids that became strings": ("adam", _renumbered, ValueError, "ids of the state dict's states, '0', '1', .*JSON"),
    "another order of names": (
        "adam",
        swapped,
        ValueError,
        "parameter '0.weight' is number 0 of param group 0 here and number 1 of param group 0.*pre-hook",
    ),
    "another order of names, wrapped": ("adam", _wrapped_and_swapped, ValueError, "parameter '0.weight' is number 0"),
    "another order without names": (
        "adam",
        lambda packed: _no_names(swapped(packed)),
        ValueError,
        r"the state 'exp_avg' of parameter 0 of param group 0 \(0.weight\) has shape \(7,\), the parameter has \(7, 5\)",
    ),
    "another grouping": (
        "adam",
        _moved_to_the_other_group,
        ValueError,
        "parameter '0.weight' is number 0 of param group 0 here and number 0 of param group 1",
    ),
    "a state that is no dict": (
        "adam",
        _edit(lambda packed: packed["state"].update({1: torch.ones(3)})),
        TypeError,
        f"the state of {NAME} must be a dict, got a torch.float32 tensor",
    ),
    "a list for a tensor": (
        "adam",
        _state("exp_avg", [0.0] * 7),
        TypeError,
        f"'exp_avg' of {NAME} must be a tensor, got list",
    ),
    "an array": ("adam", _state("exp_avg", lambda t: t.numpy()), TypeError, "must be a tensor, got ndarray.*as_tensor"),
    "what a distributed checkpoint did not find": (
        "adam",
        _state("exp_avg", {}),
        TypeError,
        "must be a tensor, got dict",
    ),
    "integers": (
        "adam",
        _state("exp_avg", lambda t: t.long()),
        TypeError,
        "dtype torch.int64.*must have a floating-point",
    ),
    "complex numbers": (
        "adam",
        _state("exp_avg", lambda t: t * 1j),
        TypeError,
        "dtype torch.complex64; for a torch.float32",
    ),
    "a sparse state": ("adam", _state("exp_avg", lambda t: t.to_sparse()), TypeError, "torch.sparse_coo.*to_dense"),
    "no values": ("adam", _state("exp_avg", lambda t: t.to("meta")), TypeError, "meta device.*map_location"),
    "a shape that would broadcast": (
        "adam",
        _state("exp_avg_sq", torch.ones(1)),
        ValueError,
        r"'exp_avg_sq'.*shape \(1,\)",
    ),
    "a 0-dim state": (
        "adam",
        _state("exp_avg", torch.tensor(1.0)),
        ValueError,
        r"shape \(\), the parameter has \(7,\)",
    ),
    "a state as long, of another shape": (
        "momentum",
        _state("momentum_buffer", lambda t: t[None]),
        ValueError,
        r"\(1, 7\)",
    ),
    "an unused state of another shape": (
        "adam",
        _edit(lambda packed: packed["state"][1].update(max_exp_avg_sq=torch.ones(2))),
        ValueError,
        r"'max_exp_avg_sq'.*shape \(2,\)",
    ),
    "a moment that is missing": (
        "adam",
        _edit(lambda packed: packed["state"][1].pop("exp_avg_sq")),
        ValueError,
        f"state of {NAME} lacks 'exp_avg_sq' and has .*'exp_avg'",
    ),
    "a moment that is None": ("adam", _state("exp_avg", None), ValueError, "lacks 'exp_avg' and has .*'exp_avg_sq'"),
    "no step": (
        "adam",
        _edit(lambda packed: packed["state"][1].pop("step")),
        ValueError,
        f"state of {NAME} lacks 'step' and has 'exp_avg', 'exp_avg_sq'",
    ),
    **{
        f"step {value!r}": ("adam", _state("step", value), error, f"'step' of {NAME} {text}")
        for value, error, text in (
            (NAN, ValueError, "must be a count of steps, got nan"),
            (torch.tensor(NAN), ValueError, "must be a count of steps, got nan"),
            (float("inf"), ValueError, "must be a count of steps, got inf"),
            (-1, ValueError, "must be a count of steps, got -1.0"),
            (torch.tensor(2.5), ValueError, "must be a count of steps, got 2.5"),
            ("3", TypeError, "must be a number or a tensor of one, got str: '3'"),
            (torch.ones(2), TypeError, "must be one real number"),
            (torch.ones((), dtype=torch.complex64), TypeError, "must be one real number"),
            (torch.ones((), device="meta"), TypeError, "must be one real number.*on meta"),
        )
    },
    "step NaN where none is needed": ("momentum", _state("step", NAN), ValueError, "must be a count of steps, got nan"),
    "momentum into Adam": (
        "adam",
        _from("SGD", momentum=0.9),
        ValueError,
        "lacks 'exp_avg', 'exp_avg_sq', 'step' and has 'mom",
    ),
    "Adam into momentum": (
        "momentum",
        _from("Adam"),
        ValueError,
        "has 'exp_avg', 'exp_avg_sq', which this.*another one",
    ),
    "Adam into plain SGD": ("sgd", _from("Adam"), ValueError, "has 'exp_avg', 'exp_avg_sq', which this.*another one"),
    "AdamW of ours into SGD": ("sgd", _from("AdamW", optim), ValueError, "has 'exp_avg', 'exp_avg_sq', which this"),
    "RMSprop into Adam": ("adam", _from("RMSprop"), ValueError, "has 'square_avg', which this"),
    "Adagrad into SGD": ("sgd", _from("Adagrad"), ValueError, "has 'sum', which this"),
    "Adam into RMSprop": ("rmsprop", _from("Adam"), ValueError, "has 'exp_avg', 'exp_avg_sq', which this"),
    "momentum into RMSprop": (
        "rmsprop",
        _from("SGD", momentum=0.9),
        ValueError,
        "lacks 'square_avg', 'grad_avg', 'step' and has 'mom",
    ),
    "Adam into Lion": ("lion", _from("Adam"), ValueError, "has 'exp_avg_sq', which this"),
    "Lion into Adam": (
        "adam",
        lambda packed: _without_options(saved("Lion", network(torch.float32))),
        ValueError,
        "lacks 'exp_avg_sq', 'step' and has 'exp_avg'",
    ),
    "RMSprop's momentum switched on": ("rmsprop", _group(momentum=0.9), ValueError, "lacks 'momentum_buffer' and has"),
    "a remainder of floats": (
        "adam",
        _edit(lambda packed: packed["state"][1].update(remainder=torch.ones(7))),
        TypeError,
        "'remainder'.*dtype torch.float32.*must have torch.int16",
    ),
    "Adam into amsgrad, without options": (
        "amsgrad",
        lambda packed: _without_options(saved("Adam", network(torch.float32))),
        ValueError,
        "lacks 'max_exp_avg_sq' and has.*may start from a copy of 'exp_avg_sq'",
    ),
    "amsgrad switched on": ("adam", _group(amsgrad=True), ValueError, "lacks 'max_exp_avg_sq'"),
    "lr NaN": ("adam", _group(lr=NAN), ValueError, r"lr must be finite, got nan \(param group 0 of the state dict\)"),
    "lr of text": (
        "sgd",
        _group(1, lr="0.1"),
        TypeError,
        r"lr must be a number, got '0.1' \(param group 1 of the state dict",
    ),
    "a negative l1": ("sgd", _group(l1=-1.0), ValueError, "l1 must be >= 0, got -1.0"),
    "an unknown mode": ("adam", _group(l1_mode="lasso"), ValueError, "l1_mode must be one of 'prox'.*got 'lasso'"),
    "three betas": ("adam", _group(betas=(0.9, 0.99, 0.999)), ValueError, "betas must be a pair"),
    "Nesterov with dampening": ("momentum", _group(nesterov=True, dampening=0.5), ValueError, "nesterov=True needs"),
    "differentiable": ("adam", _group(differentiable=True), ValueError, "differentiable=True is not supported"),
}
