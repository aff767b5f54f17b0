"""State dicts that do not fit, as data: how each is made, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from regkernels import optim
from tests.optim.checkpoint.edits import (
    NAN,
    Packed,
    edited,
    in_the_group,
    in_the_state,
    moved_to_the_other_group,
    no_names,
    renumbered,
    saved,
    saved_by,
    swapped,
    without_options,
    wrapped_and_swapped,
)
from tests.support.training import network

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
    "no states": ("adam", edited(lambda packed: packed.pop("state")), ValueError, "no key 'state'"),
    "states in a list": ("adam", lambda packed: {**packed, "state": []}, TypeError, "'state' must be a dict, got list"),
    "groups in a dict": (
        "adam",
        lambda packed: {**packed, "param_groups": packed["param_groups"][0]},
        TypeError,
        "'param_groups' must be a list of dicts, got dict",
    ),
    "a group without params": (
        "adam",
        edited(lambda packed: packed["param_groups"][1].pop("params")),
        TypeError,
        "'params' of param group 1 of the state dict must be a list of ids, got NoneType",
    ),
    "a group too few": (
        "adam",
        edited(lambda packed: packed["param_groups"].pop()),
        ValueError,
        "another number of parameter groups: 1, this optimizer has 2",
    ),
    "a parameter too few": (
        "adam",
        edited(lambda packed: packed["param_groups"][0]["params"].pop()),
        ValueError,
        "param group 0 of the state dict has 1 parameters.*size of optimizer's group: 2",
    ),
    "names too few": (
        "adam",
        edited(lambda packed: packed["param_groups"][0]["param_names"].pop()),
        ValueError,
        "param group 0 of the state dict has 1 param_names for 2 parameters",
    ),
    "an id twice": ("adam", in_the_group(1, params=[2, 2]), ValueError, "list the id 2 twice"),
    "ids that became strings": ("adam", renumbered, ValueError, "ids of the state dict's states, '0', '1', .*JSON"),
    "another order of names": (
        "adam",
        swapped,
        ValueError,
        "parameter '0.weight' is number 0 of param group 0 here and number 1 of param group 0.*pre-hook",
    ),
    "another order of names, wrapped": ("adam", wrapped_and_swapped, ValueError, "parameter '0.weight' is number 0"),
    "another order without names": (
        "adam",
        lambda packed: no_names(swapped(packed)),
        ValueError,
        r"the state 'exp_avg' of parameter 0 of param group 0 \(0.weight\) has shape \(7,\), the parameter has \(7, 5\)",
    ),
    "another grouping": (
        "adam",
        moved_to_the_other_group,
        ValueError,
        "parameter '0.weight' is number 0 of param group 0 here and number 0 of param group 1",
    ),
    "a state that is no dict": (
        "adam",
        edited(lambda packed: packed["state"].update({1: torch.ones(3)})),
        TypeError,
        f"the state of {NAME} must be a dict, got a torch.float32 tensor",
    ),
    "a list for a tensor": (
        "adam",
        in_the_state("exp_avg", [0.0] * 7),
        TypeError,
        f"'exp_avg' of {NAME} must be a tensor, got list",
    ),
    "an array": (
        "adam",
        in_the_state("exp_avg", lambda t: t.numpy()),
        TypeError,
        "must be a tensor, got ndarray.*as_tensor",
    ),
    "what a distributed checkpoint did not find": (
        "adam",
        in_the_state("exp_avg", {}),
        TypeError,
        "must be a tensor, got dict",
    ),
    "integers": (
        "adam",
        in_the_state("exp_avg", lambda t: t.long()),
        TypeError,
        "dtype torch.int64.*must have a floating-point",
    ),
    "complex numbers": (
        "adam",
        in_the_state("exp_avg", lambda t: t * 1j),
        TypeError,
        "dtype torch.complex64; for a torch.float32",
    ),
    "a sparse state": (
        "adam",
        in_the_state("exp_avg", lambda t: t.to_sparse()),
        TypeError,
        "torch.sparse_coo.*to_dense",
    ),
    "no values": ("adam", in_the_state("exp_avg", lambda t: t.to("meta")), TypeError, "meta device.*map_location"),
    "a shape that would broadcast": (
        "adam",
        in_the_state("exp_avg_sq", torch.ones(1)),
        ValueError,
        r"'exp_avg_sq'.*shape \(1,\)",
    ),
    "a 0-dim state": (
        "adam",
        in_the_state("exp_avg", torch.tensor(1.0)),
        ValueError,
        r"shape \(\), the parameter has \(7,\)",
    ),
    "a state as long, of another shape": (
        "momentum",
        in_the_state("momentum_buffer", lambda t: t[None]),
        ValueError,
        r"\(1, 7\)",
    ),
    "an unused state of another shape": (
        "adam",
        edited(lambda packed: packed["state"][1].update(max_exp_avg_sq=torch.ones(2))),
        ValueError,
        r"'max_exp_avg_sq'.*shape \(2,\)",
    ),
    "a moment that is missing": (
        "adam",
        edited(lambda packed: packed["state"][1].pop("exp_avg_sq")),
        ValueError,
        f"state of {NAME} lacks 'exp_avg_sq' and has .*'exp_avg'",
    ),
    "a moment that is None": (
        "adam",
        in_the_state("exp_avg", None),
        ValueError,
        "lacks 'exp_avg' and has .*'exp_avg_sq'",
    ),
    "no step": (
        "adam",
        edited(lambda packed: packed["state"][1].pop("step")),
        ValueError,
        f"state of {NAME} lacks 'step' and has 'exp_avg', 'exp_avg_sq'",
    ),
    **{
        f"step {value!r}": ("adam", in_the_state("step", value), error, f"'step' of {NAME} {text}")
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
    "step NaN where none is needed": (
        "momentum",
        in_the_state("step", NAN),
        ValueError,
        "must be a count of steps, got nan",
    ),
    "momentum into Adam": (
        "adam",
        saved_by("SGD", momentum=0.9),
        ValueError,
        "lacks 'exp_avg', 'exp_avg_sq', 'step' and has 'mom",
    ),
    "Adam into momentum": (
        "momentum",
        saved_by("Adam"),
        ValueError,
        "has 'exp_avg', 'exp_avg_sq', which this.*another one",
    ),
    "Adam into plain SGD": (
        "sgd",
        saved_by("Adam"),
        ValueError,
        "has 'exp_avg', 'exp_avg_sq', which this.*another one",
    ),
    "AdamW of ours into SGD": ("sgd", saved_by("AdamW", optim), ValueError, "has 'exp_avg', 'exp_avg_sq', which this"),
    "RMSprop into Adam": ("adam", saved_by("RMSprop"), ValueError, "has 'square_avg', which this"),
    "Adagrad into SGD": ("sgd", saved_by("Adagrad"), ValueError, "has 'sum', which this"),
    "Adam into RMSprop": ("rmsprop", saved_by("Adam"), ValueError, "has 'exp_avg', 'exp_avg_sq', which this"),
    "momentum into RMSprop": (
        "rmsprop",
        saved_by("SGD", momentum=0.9),
        ValueError,
        "lacks 'square_avg', 'grad_avg', 'step' and has 'mom",
    ),
    "Adam into Lion": ("lion", saved_by("Adam"), ValueError, "has 'exp_avg_sq', which this"),
    "Lion into Adam": (
        "adam",
        lambda packed: without_options(saved("Lion", network(torch.float32))),
        ValueError,
        "lacks 'exp_avg_sq', 'step' and has 'exp_avg'",
    ),
    "RMSprop's momentum switched on": (
        "rmsprop",
        in_the_group(momentum=0.9),
        ValueError,
        "lacks 'momentum_buffer' and has",
    ),
    "a remainder of floats": (
        "adam",
        edited(lambda packed: packed["state"][1].update(remainder=torch.ones(7))),
        TypeError,
        "'remainder'.*dtype torch.float32.*must have torch.int16",
    ),
    "Adam into amsgrad, without options": (
        "amsgrad",
        lambda packed: without_options(saved("Adam", network(torch.float32))),
        ValueError,
        "lacks 'max_exp_avg_sq' and has.*may start from a copy of 'exp_avg_sq'",
    ),
    "amsgrad switched on": ("adam", in_the_group(amsgrad=True), ValueError, "lacks 'max_exp_avg_sq'"),
    "lr NaN": (
        "adam",
        in_the_group(lr=NAN),
        ValueError,
        r"lr must be finite, got nan \(param group 0 of the state dict\)",
    ),
    "lr of text": (
        "sgd",
        in_the_group(1, lr="0.1"),
        TypeError,
        r"lr must be a number, got '0.1' \(param group 1 of the state dict",
    ),
    "a negative l1": ("sgd", in_the_group(l1=-1.0), ValueError, "l1 must be >= 0, got -1.0"),
    "an unknown mode": (
        "adam",
        in_the_group(l1_mode="lasso"),
        ValueError,
        "l1_mode must be one of 'prox'.*got 'lasso'",
    ),
    "three betas": ("adam", in_the_group(betas=(0.9, 0.99, 0.999)), ValueError, "betas must be a pair"),
    "Nesterov with dampening": (
        "momentum",
        in_the_group(nesterov=True, dampening=0.5),
        ValueError,
        "nesterov=True needs",
    ),
    "differentiable": ("adam", in_the_group(differentiable=True), ValueError, "differentiable=True is not supported"),
}
