"""The matrix, as data: optimizers, modes, sizes, values and memory layouts. `tests.support.engine` runs it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels import reference
from regkernels.table import segments

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)

CHUNK = 16384
"""Elements per unit of work; tests/backends/test_layouts.py compares it with the extension's own number."""

SIZES = (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 1023, 1025, CHUNK - 1, CHUNK, CHUNK + 1)
"""Around every width that a kernel could have: of a register, of a block of the inner loop, of a chunk."""

LONG = 2**20 + 1

# --- optimizers ---

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd_maximize": ("SGD", {"maximize": True}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "dampening": ("SGD", {"momentum": 0.8, "dampening": 0.3, "maximize": True}),
    "nesterov": ("SGD", {"momentum": 0.7, "nesterov": True}),
    "adam": ("Adam", {"betas": (0.8, 0.97)}),
    "amsgrad": ("Adam", {"amsgrad": True, "betas": (0.7, 0.4)}),
    "adamw": ("AdamW", {}),
    "adamw_maximize": ("AdamW", {"maximize": True, "amsgrad": True, "eps": 1e-3}),
    "rmsprop": ("RMSprop", {"alpha": 0.9}),
    "rmsprop_momentum": ("RMSprop", {"alpha": 0.9, "momentum": 0.7, "maximize": True}),
    "rmsprop_centered": ("RMSprop", {"centered": True, "eps": 1e-3}),
    "rmsprop_both": ("RMSprop", {"centered": True, "momentum": 0.8, "eps": 1e-3}),
    "adagrad": ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.3}),
    "radam": ("RAdam", {"betas": (0.8, 0.9)}),
    "lion": ("Lion", {"betas": (0.7, 0.9)}),
}
"""Name of the class, in regkernels.optim and in torch.optim, and its arguments. Second moments that forget soon make
amsgrad's running maximum differ from them."""

STATES = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "RMSprop": ("square_avg", "momentum_buffer", "grad_avg"),
    "Adagrad": ("sum",),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "Lion": ("exp_avg",),
}

WITHOUT_METRIC = ("lion",)
"""Rules that refuse the modes "prox"."""


def l1_modes(rule: str) -> tuple[str, ...]:
    return ("decoupled", "subgradient") if rule in WITHOUT_METRIC else ("prox", "decoupled", "subgradient")


STRENGTHS = {"lr": 0.0123, "l1": 0.37, "weight_decay": 0.21}
"""No powers of two: each product rounds."""


class Case(NamedTuple):
    rule: str
    l1_mode: str
    weight_decay_mode: str | None

    @property
    def options(self) -> dict[str, Any]:
        modes = {"l1_mode": self.l1_mode, "weight_decay_mode": self.weight_decay_mode}
        return {**STRENGTHS, **RULES[self.rule][1], **modes}

    def __str__(self) -> str:
        return "-".join(map(str, self))


MATRIX = [
    Case(*names)
    for names in itertools.product(RULES, ("prox", "decoupled", "subgradient"), (None, "coupled", "decoupled", "prox"))
    if (names[2] is not None or names[0].startswith("adamw")) and not (names[0] in WITHOUT_METRIC and "prox" in names)
]

FEW = [
    Case("dampening", "prox", "prox"),
    Case("adam", "subgradient", "coupled"),
    Case("amsgrad", "prox", "prox"),
    Case("adamw", "decoupled", "decoupled"),
]
"""Each state, each mode at least once, for what is too much to run with the whole matrix."""


class Precision(NamedTuple):
    """Options of rounding, and the dtypes of weights that they allow."""

    param_rounding: str
    state_dtype: torch.dtype | None
    dtypes: tuple[torch.dtype, ...]

    @property
    def options(self) -> dict[str, Any]:
        return {"param_rounding": self.param_rounding, "state_dtype": self.state_dtype, "seed": 2**32 - 5}

    def __str__(self) -> str:
        return self.param_rounding + ("" if self.state_dtype is None else " and bfloat16 states")


PRECISIONS = [
    Precision("stochastic", None, DTYPES),
    Precision("remainder", None, (torch.float64, torch.float32, torch.bfloat16)),
    Precision("master", None, DTYPES),
    Precision("nearest", torch.bfloat16, (torch.float32, *HALF)),
    Precision("stochastic", torch.bfloat16, (torch.float32, *HALF)),
    Precision("remainder", torch.bfloat16, (torch.float32, torch.bfloat16)),
    Precision("master", torch.bfloat16, (torch.float32, *HALF)),
]

# --- values ---


def special_values(dtype: torch.dtype) -> Tensor:
    """Signed zeros, subnormals, the largest numbers, infinities, NaN, and numbers whose squares leave the range."""
    limits = torch.finfo(dtype)
    smallest = limits.tiny * limits.eps
    positive = [0.0, smallest, 3 * smallest, limits.tiny, limits.tiny**0.5, limits.eps, 0.1, 1.0, 1.0 + limits.eps]
    positive += [limits.max**0.5, limits.max / 2, limits.max, float("inf")]
    return torch.tensor([*positive, *(-x for x in positive), float("nan")], dtype=torch.float64).to(dtype)


def special_pairs(dtype: torch.dtype, step: int) -> tuple[Tensor, Tensor]:
    """Weights and gradients: each special value meets each other one, in another order in every step."""
    values = special_values(dtype)
    return values.repeat(len(values)), values.roll(5 * step).repeat_interleave(len(values))


def every_pattern(dtype: torch.dtype) -> Tensor:
    """All values of a 16-bit type; of a wider one 2**16 random patterns, with NaNs of any payload among them."""
    if dtype in HALF:
        return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    patterns = torch.randint(limits.min, limits.max, (2**16,), dtype=integer)
    patterns[::256] |= torch.full((), float("inf"), dtype=dtype).view(integer) | 1
    patterns[:2] = torch.tensor([limits.max, -1])  # NaNs that become 0 when they are rounded like numbers
    return patterns.view(dtype)


class Model(NamedTuple):
    """Weights by param group, and what their gradients are in each step."""

    groups: list[list[Tensor]]
    gradients: list[list[list[Tensor]]]


def model_of_every_size(steps: int = 3, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Model:
    """Per dtype a tensor of every size; in a group of their own, so that sums stay numbers, the special values."""
    shapes = [(dtype, size) for dtype in dtypes for size in SIZES]
    weights = [torch.randn(size).to(dtype) for dtype, size in shapes]
    gradients = [[torch.randn(size).to(dtype) for dtype, size in shapes] for _ in range(steps)]
    special = [[special_pairs(dtype, step) for dtype in dtypes] for step in range(steps)]
    return Model(
        [weights, [weight for weight, _ in special[0]]],
        [[ordinary, [g for _, g in pairs]] for ordinary, pairs in zip(gradients, special, strict=True)],
    )


def model_of_one(weight: Tensor, *gradients: Tensor) -> Model:
    return Model([[weight]], [[[gradient]] for gradient in gradients])


def model_of_every_pattern(dtype: torch.dtype) -> Model:
    """Returns two steps of a weight of all patterns, whose gradients are the same patterns in other orders."""
    patterns = every_pattern(dtype)
    return model_of_one(patterns, *(patterns[torch.randperm(len(patterns))] for _ in range(2)))


# --- memory layouts: the same values, elsewhere ---

SENTINEL = -7.0
"""Lies around the views below: a step must not touch it."""


def _within(values: Tensor, shape: tuple[int, ...], index: tuple[Any, ...]) -> Tensor:
    buffer = torch.full(shape, SENTINEL, dtype=values.dtype, device=values.device)
    view = buffer[index]
    view.copy_(values)
    return view


def _offset(values: Tensor) -> Tensor:
    """One element past where an allocation begins: nothing is aligned to more than the element."""
    buffer = torch.full((values.numel() + 3,), SENTINEL, dtype=values.dtype, device=values.device)
    view = buffer[1 : 1 + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def _transposed(values: Tensor) -> Tensor:
    order = tuple(reversed(range(values.dim())))
    return values.permute(order).clone(memory_format=torch.contiguous_format).permute(order)


def _channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last) if values.dim() == 4 else _transposed(values)


def _every_other(values: Tensor) -> Tensor:
    if not values.dim():
        return _offset(values)
    *outer, last = values.shape
    return _within(values, (*outer, 2 * last), (..., slice(None, None, 2)))


def _columns(values: Tensor) -> Tensor:
    if not values.dim():
        return _offset(values)
    *outer, last = values.shape
    return _within(values, (*outer, last + 3), (..., slice(2, last + 2)))


def _odd_strides_of_one(values: Tensor) -> Tensor:
    """What torch allows: the stride of a dimension of one element may be anything."""
    strides = [stride if size > 1 else 17 for size, stride in zip(values.shape, values.stride(), strict=True)]
    return values.clone().as_strided(values.shape, strides)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.clone,
    "offset": _offset,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "every_other": _every_other,
    "columns": _columns,
    "odd_strides_of_one": _odd_strides_of_one,
}


def surroundings(view: Tensor, everything: bool = False) -> Tensor:
    """What the storage of ``view`` holds beside its elements, or with ``everything`` all that it holds."""
    storage = torch.empty(0, dtype=view.dtype, device=view.device).set_(view.untyped_storage())
    kept = torch.ones(len(storage), dtype=torch.bool, device=view.device)
    if not everything:
        every = torch.arange(len(storage), device=view.device)
        kept[every.as_strided(view.shape, view.stride(), view.storage_offset()).flatten()] = False
    return storage[kept].clone()


SHAPES = ((), (0,), (3, 0, 2), (1,), (1, 9, 1), (5, 7), (2, 3, 4, 5), (1025,))

# --- tables of segments ---


def joined(table: list[list[int]], may_follow: list[bool]) -> list[list[int]]:
    """What `regkernels.table.segments.merge` must return, one segment and one buffer at a time."""
    result: list[list[int]] = []
    for values, follows in zip(table, may_follow, strict=True):
        if result and follows and _continues(result[-1], values):
            result[-1][segments.NUMEL] += values[segments.NUMEL]
        else:
            result.append(list(values))
    return result


def _continues(one: list[int], other: list[int]) -> bool:
    before, after = (dict(zip(segments.FIELDS, values, strict=True)) for values in (one, other))
    return all(
        before[name] == after[name] for name in ("row", "total", "stream", "place", "gap", "groups", "inner", "kind")
    ) and all(after[name] == before[name] + width * before["numel"] for name, width in buffers(before["kind"]))


def buffers(kind: int) -> Iterator[tuple[str, int]]:
    """The columns of addresses that a kernel uses, with the bytes of an element. States of halves are float32."""
    of = reference.kinds.Kind.of(kind)
    yield "weight", of.dtype.itemsize
    yield "gradient", of.dtype.itemsize
    for k in range(len(reference.RULES[of.rule].state_names)):
        yield f"state{k}", 2 if of.narrow else max(4, of.dtype.itemsize)
    if of.rounding in ("remainder", "master"):
        yield "kept", 2 if of.rounding == "remainder" else 4
    if of.penalty == "weighted_l1":
        yield "l1_weight", max(4, of.dtype.itemsize)
