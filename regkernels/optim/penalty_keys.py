"""Describes penalties and constraints of a param group beyond l1 and weight decay: which there are, and which a group asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from torch import Tensor
from torch.nn import UninitializedParameter

from regkernels import validation
from regkernels.distributed import flattened, shards
from regkernels.reference.family import FAMILY
from regkernels.table import grouping
from regkernels.table.hyper import Number, number


class Penalties(TypedDict, total=False):
    """Keys of a param group that every optimizer takes as keyword arguments, too. What is absent is off.

    With t the step of an element (``lr`` times the gain of momentum for SGD, ``lr / (sqrt(v_hat) + eps)`` for Adam), each
    penalty is applied as the proximal operator of ``t * penalty``, in the metric of the optimizer, in the same pass as the
    step. At most one of ``l1``, ``l0``, ``l_half``, ``mcp``, ``scad``, ``log_sum`` and ``huber`` per group, which may have
    ``weight_decay``, too; strengths are not negative, and in units of the loss.

    - ``l1_weights``: the strength of element i is ``l1 * l1_weights[...][i]`` (adaptive lasso). A list of one tensor per
      parameter, of its shape, in float32 (float64 for float64 parameters), >= 0, on its device.
    - ``positive``: True keeps the weights >= 0; goes with all of these.
    - ``l0``: ``l0 * number of x != 0``.
    - ``l_half``: ``l_half * sum sqrt |x|``.
    - ``mcp``: minimax concave penalty; ``mcp_gamma`` (3.0) > 0 says where it becomes constant, at ``mcp_gamma * mcp``.
    - ``scad``: smoothly clipped absolute deviation; ``scad_a`` (3.7) > 1, constant from ``scad_a * scad`` on.
    - ``log_sum``: ``log_sum * sum log(1 + |x| / log_sum_eps)``; ``log_sum_eps`` (1.0) > 0 (at least 1.2e-38), in units of the
      weights.
    - ``huber``: ``huber * sum H(x)`` with ``H = x**2 / 2`` up to ``|x| = huber_delta`` (1.0) and linear beyond: no zeros, a decay
      whose pull is bounded; ``huber_delta`` > 0 (at least 1.2e-38).
    - ``group_l1``: ``group_l1 * sum over groups of c ||w_group||_2``, group lasso; with ``l1`` the sparse group lasso. Groups
      are the indices along ``group_dim`` (0: rows, that is output neurons or convolution filters; 1: columns; "tensor": all of a
      parameter), ``group_size`` (1) of them each: the head size makes groups of attention heads. ``group_weight`` is the c:
      "sqrt_size", the root of the group's number of elements, or "ones".
    - ``max_norm``: the largest norm of a group, which is scaled down to it; ``unit_norm``: True scales every group to norm 1,
      but for groups of zeros. Groups as above.
    - ``box``: (low, high), between which the weights are kept.

    With anything by groups, adaptive optimizers take one step size per group, from the mean of its second moments: only then do
    these operators have a closed form that is exact.

    Groups of a DTensor may lie on several ranks (rows sharded, ``group_dim=1``). Such parameters are updated in eager torch instead
    of the kernel, about a hundred times slower on a CPU, and ranks tell each other the sums of all of them: one message a step, a
    second one for adaptive optimizers, a third one for `stats`. Not within CUDA graphs (``capturable``).

    Where a penalty is concave (of curvature 1 / ``mcp_gamma``, 1 / (``scad_a`` - 1), or at most ``log_sum / log_sum_eps**2``), training
    settles only with steps that are not too large for it: t below the inverse of the curvature (an adaptive step grows to ``lr / eps``
    where gradients vanish), and with momentum below ``1 - momentum`` times that.

    Sources: `regkernels.reference.family.FAMILY`; Yuan and Lin (2006) for the group lasso, Simon et al. (2013) for the sparse one,
    Zou (2006) for the adaptive lasso.
    """

    l1_weights: Sequence[Tensor] | None
    positive: bool
    l0: float | Tensor
    l_half: float | Tensor
    mcp: float | Tensor
    mcp_gamma: float
    scad: float | Tensor
    scad_a: float
    log_sum: float | Tensor
    log_sum_eps: float
    huber: float | Tensor
    huber_delta: float
    group_l1: float | Tensor
    group_dim: grouping.Dim
    group_size: int
    group_weight: grouping.Weighting
    max_norm: float | None
    unit_norm: bool
    box: tuple[float, float] | None


OFF: dict[str, Any] = {
    **dict.fromkeys((*FAMILY, "group_l1"), 0.0),
    **dict.fromkeys(("positive", "unit_norm"), False),
    **dict.fromkeys(("l1_weights", "max_norm", "box"), None),
}
"""What switches a penalty or constraint off where the optimizer's defaults have it on."""

DEFAULTS: dict[str, Any] = {
    **OFF,
    **{penalty.shape_key: penalty.shape.default for penalty in FAMILY.values() if penalty.shape is not None},
    "group_dim": 0,
    "group_size": 1,
    "group_weight": "sqrt_size",
}
"""What a key stands for that nobody has given."""


class Method(NamedTuple):
    """Says what a param group asks its kernel to do. Another one takes another plan.

    ``penalty``: one of `regkernels.reference.family.PENALTIES`; ``dim`` and ``size``: how parameters fall into groups.
    """

    rule: str
    penalty: str = "plain"
    dim: int | str = 0
    size: int = 1


def method_of(group: Mapping[str, Any], rule: str) -> Method:
    """Returns what a param group with this rule asks its kernel to do."""
    if group.keys().isdisjoint(Penalties.__annotations__):
        return Method(rule, "l1" if group["weight_decay_mode"] == "cautious" else "plain")
    if _grouped(group):
        return Method(rule, "group", group.get("group_dim", 0), group.get("group_size", 1))
    if group.get("l1_weights") is not None:
        return Method(rule, "weighted_l1")
    active = [name for name in FAMILY if is_active(group, name)]
    if active:
        return Method(rule, active[0])
    extended = group.get("positive") or group.get("box") is not None or group["weight_decay_mode"] == "cautious"
    return Method(rule, "l1" if extended else "plain")


def is_active(group: Mapping[str, Any], name: str) -> bool:
    """Tells whether the strength of that name is switched on: given, and not known to be 0."""
    value = group.get(name, 0.0)
    return bool(value is not None and validation.may_be_positive(value))


def _grouped(group: Mapping[str, Any]) -> list[str]:
    """Lists the keys that act on groups."""
    asked = {
        "group_l1": is_active(group, "group_l1"),
        "max_norm": group.get("max_norm") is not None,
        "unit_norm": bool(group.get("unit_norm")),
    }
    return [name for name, wanted in asked.items() if wanted]


def asked(group: Mapping[str, Any]) -> list[str]:
    """Lists the keys of this module that are switched on."""
    keys = [key for key in FAMILY if is_active(group, key)] + _grouped(group)
    keys += ["positive"] * bool(group.get("positive"))
    return keys + [key for key in ("box", "l1_weights") if group.get(key) is not None]


def needs_metric(group: Mapping[str, Any]) -> list[str]:
    """Lists the keys whose proximal operators need to know the step of each element."""
    keys = [name for name in (*FAMILY, "group_l1") if is_active(group, name)]
    if group["l1_mode"] == "prox" and is_active(group, "l1"):
        keys.append("l1")
    if group["weight_decay_mode"] == "prox" and is_active(group, "weight_decay"):
        keys.append("weight_decay")
    return keys


def fields(group: Mapping[str, Any], method: Method) -> dict[str, Number]:
    """Returns the fields of `Hyper` that the penalty of a group fills, beyond those of l1 and weight decay."""
    found: dict[str, Number] = {}
    if group["weight_decay_mode"] == "cautious":
        found["cautious"] = 1.0
    if method.penalty in FAMILY:
        penalty = FAMILY[method.penalty]
        found["strength"] = number(group[penalty.key], group)
        if penalty.shape is not None:
            found["shape"] = float(group.get(penalty.shape_key, penalty.shape.default))
    low, high = group.get("box") or (-math.inf, math.inf)
    low, high = (float(bound) + 0.0 for bound in (low, high))  # -0.0 would become a weight
    found["lower"], found["upper"] = (max(low, 0.0) if group.get("positive") else low), high
    if method.penalty == "group":
        found["group_strength"] = number(group.get("group_l1", 0.0), group)
        found["group_by_size"] = float(group.get("group_weight", "sqrt_size") == "sqrt_size")
        max_norm = group.get("max_norm")
        found["max_norm"] = math.inf if max_norm is None else float(max_norm)
        found["unit_norm"] = float(bool(group.get("unit_norm")))
    return found


def check(group: Mapping[str, Any], where: str, *, wait: bool) -> None:
    """Raises where a key has a value that is not allowed, or two of them contradict each other."""
    if group.keys().isdisjoint(Penalties.__annotations__):
        return
    for name in (*FAMILY, "group_l1"):
        validation.nonnegative(name, group.get(name, 0.0), where, wait=wait)
    for penalty in FAMILY.values():
        if penalty.shape is not None and penalty.shape_key in group:
            validation.shape(penalty.shape, penalty.shape_key, group[penalty.shape_key], where)
    for name in ("positive", "unit_norm"):
        if not isinstance(group.get(name, False), bool):
            raise TypeError(f"{name} must be True or False, got {group[name]!r}{where}")
    _check_constraints(group, where)
    _check_combination(group, where)


def _check_constraints(group: Mapping[str, Any], where: str) -> None:
    if group.get("max_norm") is not None:
        validation.nonnegative("max_norm", group["max_norm"], where)
    if group.get("box") is not None:
        _, high = validation.bounds(group["box"], "box", where)
        if group.get("positive") and high < 0:
            raise ValueError(f"box={group['box']!r} contradicts positive=True{where}; leave one of them out")
    dim, size = group.get("group_dim", 0), group.get("group_size", 1)
    grouping.check(dim, size, group.get("group_weight", "sqrt_size"), prefix="group_")


def _check_combination(group: Mapping[str, Any], where: str) -> None:
    def refuse(one: str, other: str, because: str) -> None:
        raise ValueError(
            f"{one} and {other} cannot be combined{where}: {because}; set one of them to 0, or leave it out"
        )

    active = [name for name in ("l1", *FAMILY) if is_active(group, name)]
    if len(active) > 1:
        refuse(active[0], active[1], "at most one elementwise penalty per param group, besides weight_decay")
    in_gradient = group["l1_mode"] == "subgradient"
    if group.get("l1_weights") is not None and (in_gradient or (active and active != ["l1"])):
        refuse(
            "l1_weights", 'l1_mode="subgradient"' if in_gradient else active[0], "they are weights of the l1 threshold"
        )
    grouped = _grouped(group)
    if grouped:
        for name in active:
            if name != "l1":
                refuse(grouped[0], name, "there is no closed form for both")
        if group.get("l1_weights") is not None:
            refuse(grouped[0], "l1_weights", "there is no kernel for both")
        if group.get("box") is not None:
            refuse(grouped[0], "box", "there is no closed form for both (positive=True goes with groups)")
    if group.get("unit_norm") and is_active(group, "group_l1"):
        refuse("unit_norm", "group_l1", "a penalty on norms that are all 1 is a constant")
    if group.get("unit_norm") and group.get("max_norm") is not None:
        refuse("unit_norm", "max_norm", "norms that are all 1 need no bound")
    if group.get("box") is not None:
        for name in active:
            if name in FAMILY and not FAMILY[name].convex:
                refuse("box", name, "bounding what a non-convex penalty leaves does not solve the bounded problem")


def check_parameter(group: Mapping[str, Any], position: int, param: Tensor, name: str) -> None:
    """Raises where the keys of a group do not fit one of its parameters. One without a shape is looked at when it has one."""
    if group.keys().isdisjoint(Penalties.__annotations__) or isinstance(param, UninitializedParameter):
        return
    check_complex(group, param, name)
    if _grouped(group):
        flattened.refuse_groups(param, _grouped(group)[0], name)
        dim, size = group.get("group_dim", 0), group.get("group_size", 1)
        grouping.group_layout(param, dim, size, name, prefix="group_")
        if group.get("capturable") and shards.splits_groups(param, dim, size):
            raise ValueError(
                f"{name} is {shards.described(param)}, and group_dim={dim!r} with group_size={size} makes groups that lie on "
                "several ranks, whose step cannot be captured into a CUDA graph; leave capturable out, choose a group_dim "
                "that is not sharded, or shard along it in multiples of group_size"
            )
    weights = group.get("l1_weights")
    if weights is not None:
        _check_weights(weights, group, position, param, name)


def check_complex(group: Mapping[str, Any], param: Tensor, name: str) -> None:
    """Raises where a group asks for what is defined for real numbers, and a parameter is complex."""
    if not param.is_complex():
        return
    on = asked(group)
    if on:
        raise ValueError(
            f"{name} is complex, and {on[0]} is defined for real parameters only; put complex parameters into a group "
            "without it"
        )


def _check_weights(weights: Any, group: Mapping[str, Any], position: int, param: Tensor, name: str) -> None:
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or len(weights) != len(group["params"]):
        count = f"{len(weights)} of them" if isinstance(weights, Sequence) else type(weights).__name__
        raise ValueError(
            f"l1_weights must be a list of one tensor per parameter of the group ({len(group['params'])}), got {count}"
        )
    validation.l1_weight(weights[position], param, f"l1_weights[{position}]", name)


def check_gain(group: Mapping[str, Any], momentum: float, dampening: float, where: str) -> None:
    """Raises where a proximal step lacks what it needs, the gain ``(1 - dampening) / (1 - momentum)``."""
    if needs_metric(group) and momentum != 0 and not (momentum < 1 and dampening < 1):
        raise ValueError(
            f"the proximal step of {needs_metric(group)[0]} needs momentum < 1 and dampening < 1, got momentum {momentum} and "
            f"dampening {dampening}{where}: the gain (1 - dampening) / (1 - momentum) is not positive; for l1 and weight_decay "
            'choose the mode "decoupled"'
        )
