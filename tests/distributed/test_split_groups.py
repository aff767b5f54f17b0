"""Groups that lie on several ranks: the same step as on one process, in one message for each phase."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from regkernels import optim
from regkernels.distributed.index import Lines, windows_of
from regkernels.distributed.shards import splits_groups
from tests.distributed import simulated, split_cases, world
from tests.distributed.split_cases import RUNS, SPREADS
from tests.optim.test_fixed_points import CLOSE, Rule
from tests.optim.test_group_fixed_points import LINEAR, violation
from tests.support.problems import minimise

LASSO = {"group_l1": 0.35, "group_size": 3}
RULES = {
    "nesterov": Rule(optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, 10.0, {}),
    "adam": Rule(optim.Adam, {"lr": 0.05, "betas": (0.9, 0.9), "eps": 0.1}, 1.0, {}),
}

CASES = [(ranks, *names) for ranks in SPREADS for names in split_cases.names(ranks)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 0.0, torch.bfloat16: 0.0}


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[Any]]:
    return {ranks: world.run(ranks, split_cases.train_all, ranks) for ranks in SPREADS}


@pytest.mark.parametrize(("ranks", "name", "run"), CASES)
def test_the_step_is_that_of_one_process(worlds: dict[int, list[Any]], ranks: int, name: str, run: str) -> None:
    expected = split_cases.train(SPREADS[ranks][name], RUNS[run])
    close = dict.fromkeys(("rtol", "atol"), TOLERANCES[RUNS[run].dtype])
    for result in worlds[ranks]:
        found = result[name, run]
        for after, wanted in zip(found["weights"], expected["weights"], strict=True):
            for places, weight, want in zip(found["places"], after, wanted, strict=True):
                want = want.flatten()[places]
                torch.testing.assert_close(weight, want, **close)
                assert torch.equal(weight == 0, want == 0)
        for places, state, wanted in zip(found["places"], found["states"], expected["states"], strict=True):
            assert state.keys() == wanted.keys()
            for key, want in wanted.items():
                torch.testing.assert_close(state[key], want.flatten()[places] if want.dim() else want, **close)
        for sums, want in zip(found["stats"], expected["stats"], strict=True):
            torch.testing.assert_close(sums, want, **close)
        assert found["messages"] == RUNS[run].messages
    for result, other in itertools.combinations([result[name, run] for result in worlds[ranks]], 2):
        for after, others in zip(result["weights"], other["weights"], strict=True):
            copies = zip(result["places"], other["places"], after, others, strict=True)
            assert all(torch.equal(a, b) for places, same, a, b in copies if torch.equal(places, same))


def zeros_and_others(ranks: int, name: str, run: str) -> tuple[int, int]:
    weights = [w for after in split_cases.train(SPREADS[ranks][name], RUNS[run])["weights"] for w in after]
    return sum(int((w == 0).sum()) for w in weights), sum(int((w != 0).sum()) for w in weights)


def test_some_groups_become_zeros_and_some_do_not() -> None:
    """Else the cases above could not tell a sum over a part of a group from that over all of it."""
    for ranks, spreads in SPREADS.items():
        for name in spreads:
            found = [zeros_and_others(ranks, name, run) for run in split_cases.OF_ALL]
            assert any(zeros and others for zeros, others in found), (ranks, name)
    for run, (_, options, *_) in RUNS.items():
        if "group_l1" in options:
            assert all(zeros_and_others(2, "columns of rows", run)), run


def _fit(model: nn.Module) -> nn.Module:
    optimizer = optim.AdamW(model.parameters(), lr=0.05, group_l1=0.05, group_dim=-1, max_grad_norm=1.0)
    x = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(12):
        optimizer.zero_grad()
        (model(x)[:, 0] - x[:, 0]).square().mean().backward()
        optimizer.step()
    return model


def _network() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)]
    return nn.Sequential(*layers).double()


def _fit_sharded(rank: int) -> list[torch.Tensor]:
    model = _network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=split_cases.mesh_of(2))
    return [param.full_tensor().detach() for param in _fit(model).parameters()]


def test_fully_sharded_training_is_that_of_one_process() -> None:
    expected = [param.detach() for param in _fit(_network()).parameters()]
    assert all(0 < int((weight == 0).all(0).sum()) < weight.shape[1] for weight in expected)
    for weights in world.run(2, _fit_sharded):
        for weight, want in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight, want, rtol=0, atol=1e-12)
            assert torch.equal(weight == 0, want == 0)


def _misses_a_gradient(rank: int) -> Any:
    mesh = split_cases.mesh_of(2)
    one, other, empty = (nn.Parameter(split_cases.placed(torch.ones(n, 3), (0,), mesh)) for n in (4, 4, 1))
    optimizer = optim.AdamW([one, other, empty], lr=0.1, group_l1=0.1, group_dim=1)
    for param in (one, other, empty):
        if rank == 0 or param is one:
            param.grad = torch.ones_like(param)
    try:
        optimizer.step()
    except ValueError as error:
        message = str(error)
    unchanged = split_cases.own(one).eq(1).all() and split_cases.own(other).eq(1).all()
    steps = [float(state["step"]) for state in optimizer.state.values()]
    other.grad = torch.ones_like(other)
    optimizer.step()
    return message, bool(unchanged), steps, [split_cases.own(param) for param in (one, other, empty)]


def test_a_gradient_on_some_ranks_only_is_refused_on_all() -> None:
    """A rank whose part is empty needs none."""
    for rank, (message, unchanged, steps, weights) in enumerate(world.run(2, _misses_a_gradient)):
        assert "parameter 1 of param group 0 has a gradient on 1 of the ranks that hold it and none on 1" in message
        assert unchanged
        assert not any(steps)
        assert len(weights[2]) == 1 - rank
        for weight in weights:
            assert weight.lt(1).all()
        assert torch.equal(weights[0], weights[1])


def _without_gradients(rank: int) -> Any:
    mesh = split_cases.mesh_of(2)
    param, frozen = (nn.Parameter(split_cases.placed(torch.full((4, 3), x), (0,), mesh)) for x in (1.0, 0.0))
    optimizer = optim.SGD([param, frozen], lr=0.1, group_l1=30.0, group_dim=1, stats=True)
    counts = []
    for _ in range(2):
        with simulated.messages() as sent:
            optimizer.step()
            counts.append((len(sent), int(optimizer.stats.zero_groups)))
        param.grad = torch.zeros_like(param)
    return counts, split_cases.own(param), split_cases.own(frozen)


def test_what_has_no_gradient_anywhere_is_left_alone() -> None:
    for counts, weight, frozen in world.run(2, _without_gradients):
        assert counts == [(3, 0), (3, 3)]
        assert not weight.any()
        assert not frozen.any()


def _refused(rank: int) -> str:
    param = nn.Parameter(split_cases.placed(torch.ones(4, 3), (0,), split_cases.mesh_of(2)))
    with pytest.raises(ValueError, match="leave capturable out") as refused:
        optim.Adam([param], group_l1=0.1, group_dim=1, capturable=True)
    return str(refused.value)


def test_a_captured_step_is_refused() -> None:
    for message in world.run(2, _refused):
        assert "parameter 0 of param group 0 is a DTensor with placements [S(0)]" in message
        assert "group_dim=1" in message


ROWS = ((3, 1), (7, 1), (10, 5), (12, 3), (16, 4), (22, 2))
"""Lengths of a dimension, and of the groups along it."""


def _held(rank: int) -> dict[tuple[int, ...], list[Any]]:
    """Rows as FSDP cuts them, also where tensor parallelism has cut them before: the indices held, and what is said of them."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for sizes in ((4,), (2, 2)):
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp")[: len(sizes)])
        for length, size in ROWS:
            layer = nn.Linear(1, length, bias=False)
            weight = torch.arange(float(length))[:, None]
            if len(sizes) == 2:
                weight = distribute_tensor(weight, mesh["tp"], [Shard(0)])
            layer.weight = nn.Parameter(weight)
            fully_shard(layer, mesh=mesh["dp"])
            indices = [index for window in windows_of(layer.weight, 0) for index in range(*window)]
            values = split_cases.own(layer.weight).flatten().tolist()
            found[*sizes, length, size] = [values, indices, splits_groups(layer.weight, 0, size)]
    return found


def test_where_a_rank_stands_in_the_whole() -> None:
    of_ranks = world.run(4, _held)
    for case in of_ranks[0]:
        length, size = case[-2:]
        values, indices, said = zip(*(found[case] for found in of_ranks), strict=True)
        assert values == indices
        assert sorted(itertools.chain(*indices)) == list(range(length))
        groups = [index // size for of_rank in indices for index in sorted({i // size * size for i in of_rank})]
        assert said == (len(groups) > len(set(groups)),) * 4, case


def _cut_later(rank: int) -> list[bool]:
    with simulated.mesh(3, 2) as mesh:
        of_fsdp, of_both = (_StridedShard(0, split_factor=2), Shard(0)), (Shard(0), Shard(0))
        weights = [
            DTensor.from_local(torch.ones(2, 1), mesh, way, run_check=False, shape=(8, 1), stride=(1, 1))
            for way in (of_fsdp, of_both)
        ]
        return [splits_groups(weight, 0, 2) for weight in weights]


def test_a_strided_shard_is_cut_after_the_others() -> None:
    """8 rows: halves, of which 3 ranks hold 2, 2 and none; or thirds of 3, 3 and 2."""
    assert world.run(1, _cut_later) == [[False, True]]


def test_groups_that_are_held_in_pieces() -> None:
    """A rank may hold several parts of a group that do not lie side by side."""
    lines = Lines(0, 4, 3, 8, [(1, 2), (3, 5), (6, 9), (11, 12)])
    held = torch.tensor([1, 3, 4, 6, 7, 8, 11])
    x, numbers = torch.randn(len(held), 2, dtype=torch.float64), torch.randn(3)
    expected = torch.stack([x[held // 4 == group].sum() for group in range(3)])
    torch.testing.assert_close(lines.sums(x), expected, rtol=0, atol=1e-14)
    assert torch.equal(lines.spread(numbers, x).expand_as(x), numbers[held // 4][:, None].expand_as(x))


def _minimise(rank: int) -> dict[str, list[torch.Tensor]]:
    mesh, found = split_cases.mesh_of(3), {}
    for name, rule in RULES.items():
        w = nn.Parameter(split_cases.placed(torch.ones(12, dtype=torch.float64), (0,), mesh))
        optimizer = rule([w], **LASSO)
        for _ in range(400):
            w.grad = split_cases.placed(LINEAR.gradient(w.full_tensor().detach()), (0,), mesh)
            optimizer.step()
        found[name] = [w.full_tensor().detach(), split_cases.own(w)]
    return found


def test_the_fixed_point_is_that_of_the_whole() -> None:
    """Of 4 groups of 3 weights, 4 weights a rank."""
    results = world.run(3, _minimise)
    for name, rule in RULES.items():
        assert [len(result[name][1]) for result in results] == [4, 4, 4]
        w = results[0][name][0]
        assert violation(w, **LASSO) < CLOSE
        expected = minimise(LINEAR, lambda params, rule=rule: rule(params, **LASSO))
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-8)
        assert torch.equal(w == 0, expected == 0)
        assert 0 < int((w == 0).sum()) < 12
