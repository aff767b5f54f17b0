"""Sums of so many chunks that runs of them are added up first, with few taken for many."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import nn

import regkernels as rk
from regkernels.backends.triton import tables
from regkernels.backends.triton.kernels.columns import CHUNK
from tests.support.hostile import exactly
from tests.support.launches import noted

pytestmark = pytest.mark.interpreted

SIZES = (3 * CHUNK.value + 5, 100, CHUNK.value, 0, 2 * CHUNK.value)
RUN = 2


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MANY", 5)
    monkeypatch.setattr(tables, "RUN", RUN)
    monkeypatch.setattr(tables, "_recent", type(tables._recent)())  # what was cut otherwise


def params(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.randn(size).to(dtype)) for size, dtype in zip(SIZES, dtypes * 3, strict=False)]
    for param in found:
        param.grad = torch.randn_like(param)
    return found


def close(expected: float) -> float:
    return pytest.approx(expected, rel=1e-12, abs=0)  # type: ignore[no-any-return]


def test_stats_and_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total is in two launches, and one of them has nothing of another total."""
    found = params()
    groups = [found[:2], found[2:3], found[3:]]
    optimizer = rk.optim.SGD([{"params": group} for group in groups], lr=0.1, stats=True, max_grad_norm=1e300)
    launches = noted(monkeypatch)
    optimizer.step()
    assert launches == ["reduce", "reduce", "add_runs", "square_sum", "update", "update", "add_runs", "add_totals"]
    stats = optimizer.stats
    for k, group in enumerate(groups):
        assert stats.l1_norm[k].item() == close(math.fsum(exactly(w, 1) for w in group))
        assert stats.squared_norm[k].item() == close(math.fsum(exactly(w, 2) for w in group))
        assert stats.nonzeros[k].item() == sum(int(w.count_nonzero()) for w in group)
    assert stats.grad_norm.item() == close(math.sqrt(math.fsum(exactly(w.grad, 2) for w in found)))


def test_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*params(), torch.ones(3, dtype=torch.float64)]  # so that the penalty is float64
    squares = math.fsum(exactly(w, 2) for w in found)
    launches = noted(monkeypatch)
    both = rk.elastic_net_penalty(found, 0.5, 0.25)
    assert launches == ["reduce"] * 3 + ["add_runs", "penalty"]
    assert both.item() == close(0.5 * math.fsum(exactly(w, 1) for w in found) + 0.25 * squares)
    launches.clear()
    huber = rk.huber_penalty(found, 1.0, 100.0)  # half of the squares as far as this reaches
    assert launches == ["reduce_value"] * 3 + ["add_runs", "total"]
    assert huber.item() == close(0.5 * squares)


def test_a_run_ends_with_its_range() -> None:
    ranges = numpy.array([[[0, 5], [9, 11]], [[5, 5], [11, 12]], [[5, 9], [0, 0]]], dtype=numpy.int32)
    runs, of_ranges = tables.runs_of(ranges)
    assert runs.dtype == of_ranges.dtype == numpy.int32
    for (begin, end), (first, after) in zip(ranges.reshape(-1, 2), of_ranges.reshape(-1, 2), strict=True):
        lengths = [chunks_end - chunks_begin for chunks_begin, chunks_end in runs[first:after]]
        assert [chunk for run in runs[first:after] for chunk in range(*run)] == list(range(begin, end))
        assert all(length == RUN for length in lengths[:-1]) and all(0 < length <= RUN for length in lengths)
    assert of_ranges.reshape(-1, 2)[:, 1].max() == len(runs)
