"""What happens to parameters that are spread over ranks while they are trained: each story is a function, told on one rank or several."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from regkernels import optim
from tests.distributed.topologies import whole

SHAPES = ((5, 4), (1, 6), (7,), (4, 3))
OPTIONS: dict[str, Any] = {"lr": 0.0123, "l1": 0.037, "weight_decay": 0.21}


class Spread:
    """Makes DTensors on all ranks; in one process plain tensors."""

    def __init__(self) -> None:
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        self.mesh = init_device_mesh("cpu", (self.ranks,)) if self.ranks > 1 else None

    def tensor(self, values: Tensor, placement: Placement | None = None) -> Tensor:
        if self.mesh is None:
            return values.clone()
        return distribute_tensor(values, self.mesh, [placement or Shard(0)], src_data_rank=None)

    def params(self, seed: int = 0) -> list[nn.Parameter]:
        return [nn.Parameter(self.tensor(values)) for values in whole(SHAPES, seed=seed)]

    def give(self, params: list[nn.Parameter], step: int, placement: Placement | None = None) -> None:
        """Gradients. Those of a partial sum are the first rank's, to which others add zeros."""
        for param, values in zip(params, whole(SHAPES, seed=100 + step), strict=False):
            if isinstance(placement, Partial) and self.mesh is not None:
                own = values if distributed.get_rank() == 0 else torch.zeros_like(values)
                param.grad = DTensor.from_local(own, self.mesh, [placement], run_check=False)
            else:
                param.grad = self.tensor(values, placement)

    def move(self, params: list[nn.Parameter]) -> None:
        """To other memory, as FSDP2 does when a model is moved or loaded."""
        for param in params:
            if self.mesh is None:
                param.data = param.data.clone()
            else:
                param._local_tensor = param._local_tensor.clone()  # type: ignore[attr-defined]

    def train(self, optimizer: optim.Optimizer, params: list[nn.Parameter], *steps: int) -> None:
        for step in steps:
            self.give(params, step)
            optimizer.step()


def _state(optimizer: optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    """Weights and states, whole."""
    found: list[Tensor] = []
    for param in params:
        found += [param.detach(), *optimizer.state[param].values()]
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in found]


def exchanged_in_the_groups(of: Spread) -> list[Tensor]:
    """As wrappers do that shard a model after its optimizer is made."""
    optimizer = optim.AdamW(nn.Parameter(values) for values in whole(SHAPES, seed=0))
    params = of.params()
    optimizer.param_groups[0]["params"] = list(params)
    of.train(optimizer, params, 1, 2)
    return _state(optimizer, params)


def exchanged_one_by_one_with_their_states(of: Spread) -> list[Tensor]:
    before = [nn.Parameter(values) for values in whole(SHAPES, seed=0)]
    optimizer = optim.Adam(before, amsgrad=True, **OPTIONS)
    for step in (1, 2):
        for param, values in zip(before, whole(SHAPES, seed=100 + step), strict=True):
            param.grad = values
        optimizer.step()
    params = [nn.Parameter(of.tensor(param.detach())) for param in before]
    for index, (old, new) in enumerate(zip(before, params, strict=True)):
        optimizer.param_groups[0]["params"][index] = new
        state = optimizer.state.pop(old)
        optimizer.state[new] = {key: of.tensor(value) if key != "step" else value for key, value in state.items()}
    of.train(optimizer, params, 3, 4)
    return _state(optimizer, params)


def states_exchanged(of: Spread) -> list[Tensor]:
    params = of.params()
    optimizer = optim.AdamW(params, **OPTIONS)
    of.train(optimizer, params, 1)
    for param, values in zip(params, whole(SHAPES, seed=7), strict=True):
        optimizer.state[param]["exp_avg"] = of.tensor(values)
    of.train(optimizer, params, 2, 3)
    return _state(optimizer, params)


def moved(of: Spread) -> list[Tensor]:
    params = of.params()
    optimizer = optim.SGD(params, momentum=0.9, **OPTIONS)
    for step in (1, 2, 3):
        of.train(optimizer, params, step)
        of.move(params)
    of.train(optimizer, params, 4)
    return _state(optimizer, params)


def moved_on_one_rank_alone(of: Spread) -> list[Tensor]:
    """That rank looks at everything anew; the messages it sends must be those of the others."""
    params = of.params()
    optimizer = optim.AdamW(params, skip_nonfinite=True, stats=True, **OPTIONS)
    for step in (1, 2, 3, 4):
        of.give(params, step)
        of.give(params[:1], step, Partial())
        if of.mesh is None or distributed.get_rank() == step % of.ranks:
            of.move(params)
        if step == 3:
            for param in params:
                param.grad = torch.full_like(param, torch.nan)
        optimizer.step()
    return _state(optimizer, params)


def gradients_late_and_gone(of: Spread) -> list[Tensor]:
    params = of.params()
    optimizer = optim.RAdam(params, **OPTIONS)
    for step in range(1, 8):
        of.give(params, step)
        params[step % 4].grad = None
        if step < 4:
            params[3].grad = None
        if step == 5:
            optimizer.zero_grad(set_to_none=True)
        if step == 6:
            optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    return _state(optimizer, params)


def gradients_that_stay(of: Spread) -> list[Tensor]:
    """The same memory, with other numbers in it."""
    params = of.params()
    optimizer = optim.RMSprop(params, centered=True, **OPTIONS)
    of.give(params, 1)
    for _ in range(3):
        optimizer.step()
        for param in params:
            assert param.grad is not None
            param.grad.mul_(0.5)
    return _state(optimizer, params)


def gradients_in_parts(of: Spread) -> list[Tensor]:
    """Sums that have yet to be formed, as norms under sequence parallelism have them; and all other ways of being spread."""
    params = of.params()
    optimizer = optim.Adagrad(params, **OPTIONS)
    for step, placement in enumerate((Partial(), Replicate(), Shard(0), Partial(), Shard(-1), Partial()), start=1):
        of.give(params, step, placement)
        optimizer.step()
    return _state(optimizer, params)


def groups_added(of: Spread) -> list[Tensor]:
    params, more = of.params(), of.params(seed=3)
    optimizer = optim.Lion(params[:2], lr=0.0123, weight_decay=0.21)
    of.train(optimizer, params, 1)
    optimizer.add_param_group({"params": params[2:], "lr": 0.2})
    of.train(optimizer, params, 2)
    optimizer.add_param_group(
        {"params": [nn.Parameter(more[0].detach().full_tensor() if of.mesh else more[0].detach())]}
    )  # type: ignore[attr-defined]
    optimizer.param_groups[2]["params"][0].grad = whole(SHAPES, seed=5)[0]
    of.train(optimizer, params, 3)
    return _state(optimizer, [*params, *optimizer.param_groups[2]["params"]])


def copied(of: Spread) -> list[Tensor]:
    return _duplicated(of, copy.deepcopy)


def pickled(of: Spread) -> list[Tensor]:
    return _duplicated(of, lambda optimizer: pickle.loads(pickle.dumps(optimizer)))


def _duplicated(of: Spread, duplicate: Callable[[optim.Optimizer], optim.Optimizer]) -> list[Tensor]:
    """A copy goes on alone; the original is none the wiser."""
    params = of.params()
    optimizer = optim.AdamW(params, stats=True, **OPTIONS)
    of.train(optimizer, params, 1, 2)
    twin = duplicate(optimizer)
    of.train(optimizer, params, 3)
    copies = twin.param_groups[0]["params"]
    of.train(twin, copies, 7, 8)
    of.train(optimizer, params, 4)
    return [*_state(optimizer, params), *_state(twin, copies)]


def frozen(of: Spread) -> list[Tensor]:
    params = of.params()
    optimizer = optim.SGD(params, momentum=0.9, **OPTIONS)
    params[3].requires_grad_(False)
    of.train(optimizer, params[:3], 1)
    params[3].requires_grad_(True)
    of.train(optimizer, params, 2, 3)
    return _state(optimizer, params)


def scheduled(of: Spread) -> list[Tensor]:
    """Numbers that change in every step, and a closure."""
    params = of.params()
    optimizer = optim.AdamW(params, **{**OPTIONS, "lr": torch.tensor(0.0123)})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    for step in (1, 2, 3):
        of.give(params, step)
        assert optimizer.step(lambda: 3.0) == 3.0
        scheduler.step()
        optimizer.param_groups[0]["l1"] *= 0.5
    return _state(optimizer, params)


def not_contiguous(of: Spread) -> list[Tensor]:
    """Columns of a transposed matrix, every other column of another."""
    first, second = torch.randn(6, 4), torch.randn(4, 6)
    values = [first.t(), second[:, ::2]]
    params = []
    for tensor in values:
        part = tensor if of.mesh is None else tensor.chunk(of.ranks)[distributed.get_rank()]
        # `from_local` of what is a view of more, which `distribute_tensor` would copy.
        own = part if of.mesh is None else DTensor.from_local(part, of.mesh, [Shard(0)], run_check=False)
        params.append(nn.Parameter(own))
    optimizer = optim.Adam(params, amsgrad=True, **OPTIONS)
    for step in (1, 2):
        for param in params:
            generator = torch.Generator().manual_seed(step)
            param.grad = of.tensor(torch.randn(param.shape, generator=generator))
        optimizer.step()
    return _state(optimizer, params)


def whole_groups(of: Spread) -> list[Tensor]:
    """Rows, blocks of rows, columns, and the last dimension; zeros are counted over ranks."""
    kinds = [
        ({"group_dim": 0, "group_l1": 0.9}, (5, 4), Shard(0)),
        ({"group_dim": 0, "group_size": 3, "group_l1": 0.9}, (12, 2), Shard(0)),
        ({"group_dim": 1, "group_l1": 0.4}, (3, 8), Shard(1)),
        ({"group_dim": -1, "max_norm": 0.5}, (6, 5), Shard(-1)),
        ({"group_dim": "tensor", "group_l1": 0.2}, (3, 3), Replicate()),
        ({"group_dim": 0, "unit_norm": True}, (4, 3), Shard(0)),
    ]
    shapes = [shape for _, shape, _ in kinds]
    params = [
        nn.Parameter(of.tensor(values, how)) for values, (_, _, how) in zip(whole(shapes, seed=2), kinds, strict=True)
    ]
    groups = [{"params": [param], **options} for param, (options, _, _) in zip(params, kinds, strict=True)]
    optimizer = optim.SGD(groups, lr=0.3, stats=True)
    for step in (1, 2):
        for param, values, (_, _, how) in zip(params, whole(shapes, seed=step), kinds, strict=True):
            param.grad = of.tensor(values * 0.1, how)
        optimizer.step()
    assert optimizer.stats is not None and 0 < int(optimizer.stats.zero_groups[0]) < 5
    return [*_state(optimizer, params), optimizer.stats.zero_groups, optimizer.stats.nonzeros]


STORIES = (
    whole_groups,
    exchanged_in_the_groups,
    exchanged_one_by_one_with_their_states,
    states_exchanged,
    moved,
    moved_on_one_rank_alone,
    gradients_late_and_gone,
    gradients_that_stay,
    gradients_in_parts,
    groups_added,
    copied,
    pickled,
    frozen,
    scheduled,
    not_contiguous,
)
