"""Groups of weights, as data: where they lie, what is asked of them, and what a step does to them, in scalars of float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.support import cases, engine


class Groups(NamedTuple):
    """Parameters of a shape and layout (of `cases.LAYOUTS`), and which of their elements belong together."""

    shape: tuple[int, ...]
    dim: int | str = 0
    size: int = 1
    layout: str = "contiguous"

    @property
    def options(self) -> dict[str, Any]:
        return {"group_dim": self.dim, "group_size": self.size}

    def tensor(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return cases.LAYOUTS[self.layout](torch.randn(self.shape, dtype=torch.float64).to(dtype))

    def numbers(self) -> Tensor:
        """The number of each element's group."""
        if self.dim == "tensor" or not self.shape:
            return torch.zeros(self.shape, dtype=torch.int64)
        shape = [-1 if dim == self.dim % len(self.shape) else 1 for dim in range(len(self.shape))]
        return (torch.arange(self.shape[self.dim]) // self.size).view(shape).expand(self.shape)  # type: ignore[index]

    def masks(self) -> Iterator[Tensor]:
        numbers = self.numbers()
        for number in numbers.unique():
            yield numbers == number

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.layout} by {self.dim}, {self.size}"


LAYOUTS = (
    Groups((5, 33)),
    Groups((40, 7), 1),
    Groups((6, 24), -1, 3),
    Groups((3, 130), 1, 65),
    Groups((2, 300)),
    Groups((4, 260), 1, 130),
    Groups((7, 9), "tensor"),
    Groups((4, 3, 3, 3)),
    Groups((4, 3, 3, 3), 1, layout="channels_last"),
    Groups((5, 12), 0, layout="transposed"),
    Groups((9,)),
    Groups((12,), 0, 4),
    Groups(()),
    Groups((3, 0)),
    Groups((5, 6), 0, layout="every_other"),
    Groups((1, 9, 1), 1, layout="odd_strides_of_one"),
)
"""Runs of one element, of fewer and of more than there are lanes, of more than a block; one run of a group and many."""

LARGE = (
    Groups((3, 70_000)),
    Groups((260, 300), 1),
    Groups((700, 130), 1, 10),
    Groups((300, 260), 1, 130),
    Groups((90_001,), "tensor"),
    Groups((2, 40_000), 1),
    Groups((40_000, 3), 1),
)
"""More than one task can have in a cache: of few long runs, of many short ones."""

PENALTIES: dict[str, dict[str, Any]] = {
    "group lasso": {"group_l1": 0.9, "l1": 0.0},
    "sparse group lasso": {"group_l1": 0.6, "group_weight": "ones"},
    "positive": {"group_l1": 0.4, "positive": True},
    "max_norm": {"max_norm": 0.8, "l1": 0.0},
    "all": {"group_l1": 0.3, "max_norm": 1.9, "positive": True},
    "unit_norm": {"unit_norm": True, "l1": 0.0},
}

WITH_METRIC = [rule for rule in cases.RULES if rule not in cases.WITHOUT_METRIC]

State = dict[str, Tensor]
Share = Callable[[Tensor], Tensor]


def _average(state: State, name: str, beta: float, value: Tensor) -> Tensor:
    state[name] = beta * state.get(name, torch.zeros_like(value)) + (1 - beta) * value
    return state[name]


def _sgd(g: Tensor, state: State, share: Share, step: int, o: Any) -> tuple[Tensor, Any]:
    if not o.get("momentum"):
        return o["lr"] * g, o["lr"]
    first = "buffer" not in state
    state["buffer"] = g if first else o["momentum"] * state["buffer"] + (1 - o.get("dampening", 0)) * g
    move = g + o["momentum"] * state["buffer"] if o.get("nesterov") else state["buffer"]
    return o["lr"] * move, o["lr"]


def _adam(g: Tensor, state: State, share: Share, step: int, o: Any) -> tuple[Tensor, Any]:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    m = _average(state, "m", beta1, g) / (1 - beta1**step)
    v = _average(state, "v", beta2, g * g)
    if o.get("amsgrad"):
        v = state["largest"] = torch.maximum(state.get("largest", v), v)
    s = o["lr"] / ((share(v) / (1 - beta2**step)).sqrt() + o.get("eps", 1e-8))
    return s * m, s


def _rmsprop(g: Tensor, state: State, share: Share, step: int, o: Any) -> tuple[Tensor, Any]:
    alpha = o.get("alpha", 0.99)
    v = _average(state, "v", alpha, g * g)
    if o.get("centered"):
        v = (v - _average(state, "m", alpha, g) ** 2).clamp(min=0)
    scale = 1 / (share(v).sqrt() + o.get("eps", 1e-8))
    if not o.get("momentum"):
        return o["lr"] * scale * g, o["lr"] * scale
    state["buffer"] = o["momentum"] * state.get("buffer", torch.zeros_like(g)) + scale * g
    return o["lr"] * state["buffer"], o["lr"] * scale


def _adagrad(g: Tensor, state: State, share: Share, step: int, o: Any) -> tuple[Tensor, Any]:
    state["sum"] = state.get("sum", torch.full_like(g, o["initial_accumulator_value"])) + g * g
    s = o["lr"] / (1 + (step - 1) * o["lr_decay"]) / (share(state["sum"]).sqrt() + 1e-10)
    return s * g, s


RULES = {"SGD": _sgd, "Adam": _adam, "AdamW": _adam, "RMSprop": _rmsprop, "Adagrad": _adagrad}


def expected(rule: str, groups: Groups, weight: Tensor, gradients: list[Tensor], options: dict[str, Any]) -> Tensor:
    """The weights after a step with each gradient, with prox l1 and prox weight decay: loops over groups and norms."""
    name, own = cases.RULES[rule]
    o = {**own, **options}
    gain = (1 - o.get("dampening", 0)) / (1 - o["momentum"]) if o.get("momentum") else 1.0
    gain = 1 / (1 - o["momentum"]) if name == "RMSprop" and o.get("momentum") else gain
    masks = list(groups.masks())

    def share(v: Tensor) -> Tensor:
        shared = v.clone()
        for mask in masks:
            shared[mask] = v[mask].mean()
        return shared

    w, state = weight.double(), State()
    for step, gradient in enumerate(gradients, start=1):
        g = -gradient.double() if o.get("maximize") else gradient.double()
        move, s = RULES[name](g, state, share, step, o)
        z, steps = w - move, torch.as_tensor(s, dtype=torch.float64).expand(w.shape)
        w = z.clone()
        for mask in masks:
            t = gain * steps[mask][0].item()
            limit = o.get("shrink_limit", 2.0) if isinstance(s, Tensor) and not o.get("centered") else None
            lr = o["lr"] / (1 + (step - 1) * o.get("lr_decay", 0.0))
            w[mask] = shrink(z[mask], t, o, math.inf if limit is None else limit * lr * gain)
    return w


def shrink(z: Tensor, t: float, o: dict[str, Any], most: float = math.inf) -> Tensor:
    """The proximal operator of one group, with step t, of which no more than ``most`` times the root of its size is taken."""
    if o.get("positive"):
        z = z.clamp(min=0)
    x = torch.sign(z) * (z.abs() - t * o.get("l1", 0.0)).clamp(min=0)
    weight = 1.0 if o.get("group_weight") == "ones" else math.sqrt(len(z))
    limit, norm = t * o.get("group_l1", 0.0) * weight, math.sqrt(float((x * x).sum()))
    if limit > 0:
        x = torch.zeros_like(x) if norm <= limit else x * (1 - limit / norm)
    x = x / (1 + t * o.get("weight_decay", 0.0))
    taken = math.sqrt(float(((z - x) ** 2).sum()))
    if taken > most * math.sqrt(len(z)):
        x = z - (z - x) * (most * math.sqrt(len(z)) / taken)
    norm = math.sqrt(float((x * x).sum()))
    if o.get("unit_norm"):
        return x / norm if norm else x
    if norm > o.get("max_norm", math.inf):
        x = x * (o["max_norm"] / norm)
    return x


def model_of(groups: Groups, dtypes: tuple[torch.dtype, ...], steps: int = 2) -> cases.Model:
    weights = [3 * groups.tensor(dtype) for dtype in dtypes]
    return cases.Model([weights], [[[torch.randn_like(weight) for weight in weights]] for _ in range(steps)])


def assert_device_agrees(
    rule: str, penalty: str, groups: Groups, dtypes: tuple[torch.dtype, ...], setting: engine.Setting, **options: Any
) -> None:
    """The Triton kernels add in another order: a float64 norm may end in another digit; one in float32 has the same bits."""
    model = model_of(groups, dtypes)
    case, options = cases.Case(rule, "prox", "prox"), {**PENALTIES[penalty], **groups.options, **options}
    got, expected = (engine.train(case, model, own, **options) for own in (setting, engine.REFERENCE))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith("stats"):
            torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=0, msg=name)
        elif tensor.dtype == torch.float64 and tensor.dim():
            scale = tensor.abs().max().item() if tensor.numel() else 0.0
            torch.testing.assert_close(got[name], tensor, rtol=1e-13, atol=1e-14 * scale, msg=name)
            assert torch.equal(got[name] == 0, tensor == 0), name
        else:
            engine.assert_same_bits(got[name], tensor, name)
