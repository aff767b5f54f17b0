"""What can be drawn, as data: a training is a `Plan`. All of it prints as Python that makes it again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import float16, float64

from regkernels import optim
from regkernels.optim.penalty_keys import OFF
from regkernels.reference.family import FAMILY
from tests.support import cases

# --- a training ---


class Parameter(NamedTuple):
    """A weight and its gradients: keys of `cases.LAYOUTS` and of `engine.VALUES`."""

    shape: tuple[int, ...]
    dtype: torch.dtype = float64
    layout: str = "contiguous"
    of_gradient: str = "contiguous"
    values: str = "ordinary"


class Group(NamedTuple):
    params: tuple[Parameter, ...]
    options: dict[str, Any]


class Step(NamedTuple):
    """Numbers of the parameters that have no gradient, and options that change before it, by param group."""

    missing: tuple[int, ...]
    changes: dict[int, dict[str, Any]]


class Plan(NamedTuple):
    rule: str
    """A class of `regkernels.optim`."""
    options: dict[str, Any]
    """What is the optimizer's own and no param group's, beside ``stats``."""
    groups: tuple[Group, ...]
    steps: tuple[Step, ...]
    seed: int = 0


class Boxed(NamedTuple):
    """A number that the optimizer is given as a 0-dim tensor."""

    value: float


WEIGHTS = "weights"
"""Stands for l1_weights, which are made from the parameters."""

# --- numbers ---


def of_any_size(least: float = 1e-12, most: float = 1e4) -> st.SearchStrategy[float]:
    """Positive numbers, of all orders of magnitude alike."""
    return st.floats(math.log(least), math.log(most)).map(math.exp)


strengths = st.one_of(st.just(0.0), st.floats(0.01, 2.0), of_any_size())
positive_strengths = st.one_of(st.floats(0.01, 2.0), of_any_size())
rates = st.one_of(st.floats(0.001, 0.5), st.just(0.0), of_any_size(1e-9, 10.0), st.floats(0.001, 0.1).map(Boxed))
decays = st.one_of(st.just(0.0), st.floats(0.0, 0.999), st.sampled_from([0.5, 0.9, 0.99]))
seeds = st.integers(0, 2**32 - 1)

SHAPES = {"mcp": (0.2, 8.0), "scad": (1.1, 8.0), "log_sum": (1e-3, 5.0), "huber": (1e-3, 5.0)}
"""Ranges of second parameters."""

# --- options ---

WITHOUT_METRIC = ("Lion",)
BOUNDED_SHRINK = "shrink_limit" in optim.SGD([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
"""Whether the optimizers have a bound of what a proximal step may take."""


@st.composite
def own_options(draw: st.DrawFn, rule: str, comparable: bool = False) -> dict[str, Any]:
    """Of a rule: what `torch.optim` calls by the same names. ``comparable``: its rounding is not amplified."""
    found: dict[str, Any] = {"maximize": draw(st.booleans())}
    if rule == "SGD":
        found["momentum"] = draw(decays)
        if found["momentum"] > 0:
            found["nesterov"] = draw(st.booleans())
            found["dampening"] = 0.0 if found["nesterov"] else draw(decays)
        return found
    if rule in ("Adam", "AdamW", "RAdam", "Lion"):
        found["betas"] = (draw(decays), draw(decays))
    if rule in ("Adam", "AdamW"):
        found["amsgrad"] = draw(st.booleans())
    if rule == "RMSprop":
        found.update(alpha=draw(decays), centered=draw(st.booleans()), momentum=draw(decays))
    if rule == "Adagrad":
        found.update(lr_decay=draw(decays), initial_accumulator_value=draw(st.sampled_from([0.0, 0.3])))
    if rule != "Lion":
        found["eps"] = draw(st.sampled_from([1e-8, 1e-3, 1e-16, 0.3]))
    if comparable and found.get("centered"):  # by a variance, a difference of which rounding may leave any small number
        found.update(eps=0.3, alpha=max(found["alpha"], 0.5))
    return found


def changed_options(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a rule's own options that may change during training."""
    if rule in ("Adam", "AdamW", "RAdam", "Lion"):
        pair = st.tuples(st.sampled_from([0.5, 0.9, 0.25]), st.floats(0.5, 0.999))
        return st.one_of(st.just({}), st.fixed_dictionaries({"betas": pair, "maximize": st.booleans()}))
    return st.one_of(st.just({}), st.fixed_dictionaries({"maximize": st.booleans()}))


@st.composite
def penalties(draw: st.DrawFn, rule: str, geometry: dict[str, Any] | None, weighted: bool = True) -> dict[str, Any]:
    """Strengths and constraints of a param group that go together. ``geometry``: how weights form groups; None: they do not.
    ``weighted``: l1_weights are among them."""
    metric = rule not in WITHOUT_METRIC
    kinds = ["nothing", "l1", "constraints"]
    if metric:
        kinds += [*FAMILY, *(["weighted"] if weighted else [])]
    if geometry is not None:
        kinds += ["max_norm", "unit_norm"] + ["group_l1"] * metric
    kind = draw(st.sampled_from(kinds))
    found: dict[str, Any] = {
        "lr": draw(rates),
        "weight_decay": draw(strengths),
        "weight_decay_mode": draw(st.sampled_from(["coupled", "decoupled", "cautious"] + ["prox"] * metric)),
        "l1_mode": draw(st.sampled_from(cases.l1_modes(rule.lower()))),
        "l1": 0.0,
    }
    if BOUNDED_SHRINK:
        found["shrink_limit"] = draw(st.one_of(st.none(), st.just(2.0), st.floats(1.001, 100.0)))
    if kind in ("l1", "weighted") or (kind in ("group_l1", "max_norm", "unit_norm") and draw(st.booleans())):
        found["l1"] = draw(st.one_of(positive_strengths, st.floats(0.01, 1.0).map(Boxed)))
    if kind == "weighted":
        found["l1_weights"] = WEIGHTS
        found["l1_mode"] = draw(st.sampled_from(["prox", "decoupled"]))
    if kind in FAMILY:
        found[kind] = draw(st.one_of(strengths, st.floats(0.01, 1.0).map(Boxed)))
        if kind in SHAPES:
            found[FAMILY[kind].shape_key] = draw(st.floats(*SHAPES[kind]))
    if kind == "group_l1":
        found.update(group_l1=draw(positive_strengths), group_weight=draw(st.sampled_from(["sqrt_size", "ones"])))
    if kind == "max_norm" or (kind == "group_l1" and draw(st.booleans())):
        found["max_norm"] = draw(strengths)
    if kind == "unit_norm":
        found["unit_norm"] = True
    if kind != "nothing":
        found["positive"] = draw(st.booleans())
    if kind in ("l1", "constraints", "weighted", "huber"):
        low, high = sorted((draw(st.floats(-1.0, 1.0)), draw(st.floats(0.0, 2.0))))
        found["box"] = draw(st.sampled_from([None, (low, high), (low, math.inf)]))
    return found


def redrawn(options: dict[str, Any]) -> dict[str, Any]:
    """Options that take the place of any others: what they do not name is off."""
    return {**OFF, **options}


def precisions(dtypes: set[torch.dtype]) -> st.SearchStrategy[dict[str, Any]]:
    """How halves are rounded, and states stored."""
    roundings = ["nearest", "stochastic", "master"] + ["remainder"] * (float16 not in dtypes)
    stored = [None] if any(dtype.is_complex or dtype == float64 for dtype in dtypes) else [None, torch.bfloat16]
    return st.fixed_dictionaries(
        {"param_rounding": st.sampled_from(roundings), "state_dtype": st.sampled_from(stored), "seed": seeds}
    )


@st.composite
def common_options(draw: st.DrawFn, dtypes: set[torch.dtype]) -> dict[str, Any]:
    found = {"stats": True, **draw(precisions(dtypes))}
    if draw(st.booleans()) and not dtypes & {float64, torch.complex128}:  # of which a norm may have another last digit
        found["max_grad_norm"] = draw(st.one_of(st.floats(0.01, 10.0), st.just(0.0)))
    if draw(st.booleans()):
        found["skip_nonfinite"] = True
    return found


# --- tensors ---

COMPLEX = (torch.complex64, torch.complex128)
VALUES = ("ordinary", "ordinary", "sparse", "small", "large", "special")
GRADIENTS = (*cases.LAYOUTS, "expanded")
GEOMETRIES = [
    *({"group_dim": dim, "group_size": size} for dim in (0, 1, -1) for size in (1, 2, 3)),
    {"group_dim": "tensor", "group_size": 1},
]
lengths = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 255, 256, 257]), st.sampled_from(cases.SIZES))


@st.composite
def shapes(draw: st.DrawFn, geometry: dict[str, Any] | None = None) -> tuple[int, ...]:
    if geometry is None or geometry["group_dim"] == "tensor":
        return draw(st.one_of(st.sampled_from(cases.SHAPES), st.tuples(lengths), _small_shapes(0)))
    shape = list(draw(_small_shapes(2)))
    shape[geometry["group_dim"]] *= geometry["group_size"]
    return tuple(shape)


def _small_shapes(least: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from([*range(1, 12), *range(1, 12), 0]), min_size=least, max_size=4).map(tuple)


def parameters(
    dtypes: st.SearchStrategy[torch.dtype],
    geometry: dict[str, Any] | None = None,
    values: tuple[str, ...] = VALUES,
    layouts: tuple[str, ...] = tuple(cases.LAYOUTS),
) -> st.SearchStrategy[Parameter]:
    of_gradients = st.sampled_from(GRADIENTS if len(layouts) > 1 else layouts)
    return st.builds(
        Parameter, shapes(geometry), dtypes, st.sampled_from(layouts), of_gradients, st.sampled_from(values)
    )


# --- plans ---


@st.composite
def plans(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = (*cases.DTYPES, *COMPLEX),
    regularised: bool = True,
    elementwise: bool = False,
    rule: str | None = None,
    **common: Any,
) -> Plan:
    """Draws trainings.

    Not ``regularised``: those that torch.optim knows, in numbers that its rounding leaves comparable. ``elementwise``: of
    contiguous parameters, without groups of weights and l1_weights. ``common``: options of all plans.
    """
    rule = rule or draw(st.sampled_from(list(cases.STATES)))
    own = draw(own_options(rule, comparable=not regularised))
    of_all: dict[str, Any] = {}
    if not regularised and rule == "Adagrad":  # torch takes this from no param group
        of_all["initial_accumulator_value"] = own.pop("initial_accumulator_value")
    groups, redraws = [], []
    for _ in range(draw(st.integers(1, 3))):
        of_complex = regularised and rule not in WITHOUT_METRIC and draw(st.integers(0, 9)) == 0
        allowed = [dtype for dtype in dtypes if dtype.is_complex == of_complex] or list(dtypes)
        geometry = (
            draw(st.one_of(st.none(), st.sampled_from(GEOMETRIES)))
            if regularised and not of_complex and not elementwise
            else None
        )
        values = VALUES if regularised else ("ordinary", "sparse")
        layouts = ("contiguous",) if elementwise else tuple(cases.LAYOUTS)
        some = draw(
            st.lists(parameters(st.sampled_from(allowed), geometry, values, layouts), min_size=not groups, max_size=4)
        )
        if not regularised or of_complex:
            options = plain(rule)
        else:
            options = penalties(rule, geometry, weighted=not elementwise)
        groups.append(Group(tuple(some), {**own, **(geometry or {}), **draw(options)}))
        redraws.append(st.tuples(options, changed_options(rule)).map(lambda drawn: {**drawn[0], **drawn[1]}))
    found = {param.dtype for group in groups for param in group.params}
    options = draw(common_options(found)) if regularised else {"stats": True, **of_all}
    count = sum(len(group.params) for group in groups)
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        missing = draw(st.sets(st.integers(0, max(0, count - 1)), max_size=3))
        changed = draw(st.sets(st.integers(0, len(groups) - 1), max_size=1)) if steps else set()
        steps.append(Step(tuple(sorted(missing)), {index: redrawn(draw(redraws[index])) for index in changed}))
    return Plan(rule, {**options, **common}, tuple(groups), tuple(steps), draw(seeds))


def plain(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    """What torch.optim has, too, beside a rule's own options."""
    ordinary = st.one_of(st.floats(0.001, 0.3), st.just(0.0))
    return st.fixed_dictionaries({"lr": ordinary, "weight_decay": st.one_of(st.just(0.0), st.floats(0.0, 0.5))})
