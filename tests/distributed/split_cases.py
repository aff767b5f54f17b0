"""Parameters whose groups lie on several ranks, as data, and training with them on one process and on many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from regkernels import optim
from tests.distributed import simulated

STEPS = 3

State = dict[str, Tensor]


class Spread(NamedTuple):
    """Parameters of one param group, by how they are placed; None: a plain tensor on every rank."""

    shapes: tuple[tuple[int, ...], ...]
    placements: tuple[
        tuple[int | None, ...] | None, ...
    ]  # a dimension for each one of the mesh; None there: replicated
    dim: int | str = 1
    size: int = 1


SPREADS: dict[int, dict[str, Spread]] = {
    2: {
        "columns of rows": Spread(((6, 5), (7, 4)), ((0,), (0,))),
        "rows of columns": Spread(((5, 6), (4, 7)), ((1,), (1,)), dim=0),
        "whole": Spread(((7,), (4, 6), (3, 2, 2)), ((0,), (0,), (2,)), dim="tensor"),
        "rows that are cut": Spread(((9, 4), (6, 2)), ((0,), (0,)), dim=0, size=3),
        "beside others": Spread(((6, 4), (5, 4), (3, 4), (4, 4)), ((0,), (1,), None, (None,))),
        "filters": Spread(((6, 4, 3, 3),), ((0,),)),
        "with an empty one": Spread(((1, 4), (3, 4)), ((0,), (0,))),
    },
    3: {
        "columns of rows": Spread(((7, 4), (2, 4)), ((0,), (0,))),
        "rows that are cut": Spread(((10, 3), (8, 2)), ((0,), (0,)), dim=0, size=2),
        "whole": Spread(((7,), (1, 5)), ((0,), (0,)), dim="tensor"),
    },
    4: {
        "both dimensions": Spread(((6, 4), (5, 7), (8, 3)), ((0, 1), (1, 0), (0, 0))),
        "rows": Spread(((6, 4), (5, 8), (4, 6)), ((0, 1), (None, 1), (1, None)), dim=0),
        "copies of shards": Spread(((6, 4), (7, 5)), ((None, 0), (None, 0))),
        "whole": Spread(((6, 4), (5,), (4, 6)), ((0, 1), (0, 0), (None, 1)), dim="tensor"),
    },
}
"""By the number of ranks; 4 are a mesh of 2 by 2."""


class Run(NamedTuple):
    optimizer: str
    options: dict[str, Any]
    dtype: torch.dtype = torch.float64
    messages: int = 1  # of a step
    left_out: int | None = None  # the step whose gradients are not finite


LASSO: dict[str, Any] = {"group_l1": 0.25}
SPARSE: dict[str, Any] = {"group_l1": 0.2, "l1": 0.1}

RUNS: dict[str, Run] = {
    "sgd": Run("SGD", LASSO),
    "sgd, decay": Run(
        "SGD", {"group_l1": 0.7, "weight_decay": 0.2, "weight_decay_mode": "prox", "group_weight": "ones"}
    ),
    "momentum": Run("SGD", {**SPARSE, "momentum": 0.8, "nesterov": True, "positive": True}),
    "dampened": Run("SGD", {**LASSO, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.3, "maximize": True}),
    "bounded": Run("SGD", {"max_norm": 0.9, "l1": 0.2, "l1_mode": "subgradient"}),
    "adam": Run("Adam", SPARSE, messages=2),
    "adam, decay": Run("Adam", {**LASSO, "weight_decay": 0.4, "weight_decay_mode": "prox"}, messages=2),
    "adamw": Run("AdamW", {**LASSO, "max_norm": 1.1}, messages=2),
    "cautious": Run("AdamW", {**LASSO, "weight_decay": 0.5, "weight_decay_mode": "cautious"}, messages=2),
    "amsgrad": Run("Adam", {"unit_norm": True, "amsgrad": True}, messages=2),
    "radam": Run("RAdam", LASSO, messages=2),
    "rmsprop": Run("RMSprop", {**LASSO, "centered": True, "momentum": 0.7}, messages=2),
    "adagrad": Run("Adagrad", {**SPARSE, "initial_accumulator_value": 0.1}, messages=2),
    "lion": Run("Lion", {"max_norm": 0.7, "l1": 0.3, "l1_mode": "decoupled"}),
    "clipped, with sums": Run("AdamW", {**SPARSE, "max_grad_norm": 0.7, "stats": True}, messages=5),
    "left out": Run("Adam", {**LASSO, "skip_nonfinite": True, "stats": True}, messages=5, left_out=1),
    "left out at first": Run(
        "SGD", {**LASSO, "momentum": 0.5, "skip_nonfinite": True, "stats": True}, messages=4, left_out=0
    ),
    "float32": Run("AdamW", {**SPARSE, "stats": True}, torch.float32, messages=4),
    "remainder": Run("AdamW", {**LASSO, "param_rounding": "remainder", "stats": True}, torch.bfloat16, messages=4),
    "master": Run("SGD", {**LASSO, "momentum": 0.9, "param_rounding": "master"}, torch.float16),
    "by chance": Run("AdamW", {**LASSO, "param_rounding": "stochastic"}, torch.bfloat16, messages=2),
    "narrow": Run("Adam", {**LASSO, "state_dtype": torch.bfloat16}, messages=2, dtype=torch.float32),
    "nearest": Run("SGD", SPARSE, torch.bfloat16),
}
"""``messages``: those of group sums, one for the norm of the gradients, two for `stats`."""

OF_ALL = ("momentum", "adam, decay", "clipped, with sums")


def tensors(spread: Spread, dtype: torch.dtype) -> list[tuple[Tensor, list[Tensor]]]:
    """A weight and its gradients for each parameter; some groups are weak, so that they become zeros."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for shape in spread.shapes:
        strength = torch.rand(shape, generator=generator, dtype=torch.float64).round()
        draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS + 1)]
        if spread.dim != "tensor":
            strength = strength.select(1 - int(spread.dim), 0).unsqueeze(1 - int(spread.dim))
        weight, *gradients = [(draw * (strength * 0.9 + 0.1)).to(dtype) for draw in draws]
        found.append((weight, gradients))
    return found


def placed(tensor: Tensor, placements: tuple[int | None, ...] | None, mesh: Any) -> Tensor:
    if placements is None or mesh is None:
        return tensor.clone()
    kinds = [Replicate() if dim is None else Shard(dim) for dim in placements]
    return distribute_tensor(tensor.clone(), mesh, kinds, src_data_rank=None)


def own(tensor: Tensor) -> Tensor:
    """What this rank holds."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def mesh_of(ranks: int) -> Any:
    return init_device_mesh("cpu", (2, 2) if ranks == 4 else (ranks,))


def train(spread: Spread, run: Run, mesh: Any = None) -> dict[str, Any]:
    """What this rank holds of weights and states, `stats` of each step, and how many messages the last one took.

    ``places``: of each parameter, the places of these elements in the whole.
    """
    given = tensors(spread, run.dtype)
    params = [
        nn.Parameter(placed(weight, placements, mesh))
        for (weight, _), placements in zip(given, spread.placements, strict=True)
    ]
    optimizer = getattr(optim, run.optimizer)(
        params, lr=0.3, group_dim=spread.dim, group_size=spread.size, **run.options
    )
    weights: list[list[Tensor]] = []
    stats, messages = [], 0
    for step in range(STEPS):
        for param, (_, gradients), placements in zip(params, given, spread.placements, strict=True):
            gradient = gradients[step]
            if step == run.left_out:
                gradient = gradient.clone()
                gradient.view(-1)[-1] = torch.inf
            param.grad = placed(gradient, placements, mesh)
        with simulated.messages() as sent:
            optimizer.step()
            found = getattr(optimizer, "stats", None)
        messages = len(sent)
        weights.append([own(param) for param in params])
        stats.append(None if found is None else tuple(found))
    states = [{name: own(value) for name, value in optimizer.state[param].items()} for param in params]
    places = [
        own(placed(torch.arange(weight.numel()).reshape(weight.shape), placements, mesh))
        for (weight, _), placements in zip(given, spread.placements, strict=True)
    ]
    return {"places": places, "weights": weights, "states": states, "stats": stats, "messages": messages}


def names(ranks: int) -> list[tuple[str, str]]:
    """Of placements and of runs: all of the latter with the first placements, the rest of them with a few."""
    spreads = list(SPREADS[ranks])
    return [(name, run) for name in spreads for run in (RUNS if ranks == 2 and name == spreads[0] else OF_ALL)]


def train_all(rank: int, ranks: int) -> dict[tuple[str, str], dict[str, Any]]:
    mesh = mesh_of(ranks)
    return {(name, run): train(SPREADS[ranks][name], RUNS[run], mesh) for name, run in names(ranks)}
