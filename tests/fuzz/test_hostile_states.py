"""Damaged state dicts: they load, and the next steps work, or they are refused, clearly, before anything has changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regkernels import optim
from tests.fuzz import strategies
from tests.fuzz.profiles import fuzzed
from tests.support import cases, engine

CLEAR = (TypeError, ValueError, RuntimeError, KeyError)
SHAPES = ((5, 7), (), (33,), (4,))

VALUES: dict[str, Callable[[Any], Any]] = {
    "None": lambda old: None,
    "a word": lambda old: "step",
    "an object": lambda old: object(),
    "an empty list": lambda old: [],
    "a list": lambda old: [0.5, 1.0],
    "a dict": lambda old: {"step": 1.0},
    "True": lambda old: True,
    "0": lambda old: 0,
    "-1": lambda old: -1,
    "2.5": lambda old: 2.5,
    "a large count": lambda old: 2.0**24,
    "NaN": lambda old: math.nan,
    "infinity": lambda old: math.inf,
    "a huge number": lambda old: 1e300,
    "a complex number": lambda old: 1j,
    "an array": lambda old: numpy.ones(3),
    "a scalar of NumPy": lambda old: numpy.float32(0.5),
    "0-dim": lambda old: torch.tensor(0.25),
    "one element": lambda old: torch.tensor([0.25]),
    "two elements": lambda old: torch.tensor([0.25, 0.5]),
    "no elements": lambda old: torch.zeros(0),
    "NaN in a tensor": lambda old: torch.tensor(math.nan),
    "a negative tensor": lambda old: torch.tensor(-3.0),
    "a shape like a parameter's": lambda old: torch.ones(5, 7),
    "integers": lambda old: torch.ones(5, 7, dtype=torch.int64),
    "booleans": lambda old: torch.ones(33, dtype=torch.bool),
    "complex": lambda old: torch.ones(33, dtype=torch.complex64),
    "float16": lambda old: torch.ones(33, dtype=torch.float16),
    "float8": lambda old: torch.ones(33).to(torch.float8_e4m3fn),
    "sparse": lambda old: torch.eye(5, 7).to_sparse(),
    "compressed": lambda old: torch.eye(5, 7).to_sparse_csr(),
    "meta": lambda old: torch.ones(33, device="meta"),
    "expanded": lambda old: torch.ones(()).expand(5, 7),
    "strided": lambda old: torch.ones(66)[::2],
    "with a gradient": lambda old: torch.ones(33, requires_grad=True),
    "quantised": lambda old: torch.quantize_per_tensor(torch.ones(33), 0.1, 0, torch.qint8),
    "lazily negative": lambda old: torch.imag(torch.ones(33, dtype=torch.complex64).conj()),
    "lazily conjugate": lambda old: torch.ones(33, dtype=torch.complex64).conj(),
    "a parameter": lambda old: nn.Parameter(torch.ones(33)),
    "the old one, negated": lambda old: -old if getattr(old, "dtype", None) in cases.DTYPES else old,
    "the old one, as a list": lambda old: old.tolist() if isinstance(old, Tensor) else old,
    "the old one, in float64": lambda old: old.double() if isinstance(old, Tensor) else old,
    "the old one, turned": lambda old: old.t().contiguous().t() if isinstance(old, Tensor) and old.dim() == 2 else old,
    "the old one, flat": lambda old: old.flatten() if isinstance(old, Tensor) else old,
    "the old one, for inference": lambda old: _for_inference(old) if isinstance(old, Tensor) else old,
}
"""What takes the place of something in a state dict."""


def _for_inference(old: Tensor) -> Tensor:
    with torch.inference_mode():
        return old.clone()


class Damage(NamedTuple):
    """``path``: numbers that choose, level by level, what is hit; what there is too much of begins again."""

    kind: str
    path: tuple[int, ...]
    value: str = "None"


damages = st.builds(
    Damage,
    st.sampled_from(["replaced", "replaced", "replaced", "deleted", "added", "swapped", "twice"]),
    st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple),
    st.sampled_from(list(VALUES)),
)


def damage(packed: Any, done: Damage) -> None:
    """Walks down by the path and does it to what is there."""
    parent, key = packed, None
    for number in done.path:
        at = parent if key is None else parent[key]
        keys = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        if not keys:
            break
        parent, key = at, keys[number % len(keys)]
    if key is None:
        return
    if done.kind == "replaced":
        parent[key] = VALUES[done.value](parent[key])
    elif done.kind == "deleted":
        del parent[key]
    elif done.kind == "added" and isinstance(parent, dict):
        parent["remainder" if "exp_avg" in parent else 7] = VALUES[done.value](None)
    elif done.kind == "added":
        parent.append(parent[key])
    else:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        other = keys[(keys.index(key) + 1) % len(keys)]
        if done.kind == "swapped":
            parent[key], parent[other] = parent[other], parent[key]
        else:  # one object in two places
            parent[key] = parent[other]


@st.composite
def saved(draw: st.DrawFn) -> tuple[str, dict[str, Any], torch.dtype, dict[str, Any]]:
    rule = draw(st.sampled_from(list(cases.STATES)))
    dtype = draw(st.sampled_from(cases.DTYPES))
    own = {**draw(strategies.own_options(rule)), **draw(strategies.penalties(rule, None, weighted=False))}
    return rule, own, dtype, draw(strategies.precisions({dtype}))


def trained(rule: str, own: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in SHAPES]
    own = {key: value.value if isinstance(value, strategies.Boxed) else value for key, value in own.items()}
    groups = [{"params": params[:2], **own}, {"params": params[2:], **own, "lr": 0.01}]
    optimizer = getattr(optim, rule)(groups, **options)
    for _ in range(2):
        step(optimizer)
    return optimizer


def step(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, dtype=torch.float64).to(param.dtype)
    optimizer.step()


def options_of(optimizer: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@fuzzed(50)
@given(drawn=saved(), done=st.lists(damages, min_size=1, max_size=3), setting=st.sampled_from(engine.kernels()))
def test_a_damaged_state_dict(drawn: Any, done: list[Damage], setting: engine.Setting) -> None:
    with engine.active(setting):
        optimizer, twin = trained(*drawn), trained(*drawn)
        packed = copy.deepcopy(optimizer.state_dict())
        for one in done:
            damage(packed, one)
        before, options = engine.snapshot(optimizer), options_of(optimizer)
        if loaded(optimizer, packed):
            step(optimizer)
            step(optimizer)
            return
        engine.assert_same(engine.snapshot(optimizer), before, "after a refusal")
        assert options_of(optimizer) == options
        for one in (optimizer, twin):
            torch.manual_seed(2)
            step(one)
        engine.assert_same(engine.snapshot(optimizer), engine.snapshot(twin), "the step after a refusal")


def loaded(optimizer: Any, packed: Any) -> bool:
    """Tells whether the state dict was loaded; it may be refused, but not without a word."""
    try:
        optimizer.load_state_dict(packed)
    except CLEAR as error:
        if str(error):
            return False
        raise
    return True
