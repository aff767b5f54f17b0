"""`regkernels.sparsity_report` against counts written down by hand and brute force."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")


class Holder(nn.Module):
    def __init__(self, *params: torch.Tensor) -> None:
        super().__init__()
        for index, param in enumerate(params):
            self.register_parameter(f"p{index}", nn.Parameter(param))


def test_by_hand() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[0, 3], [0, 0]], [[0, 0], [0, 0]], [[-4, 0], [0, 0]]]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0, -2.0]))
        model[1].bias.fill_(0)
        model[2].weight.copy_(torch.tensor([[0, 1], [0, 2]]))
    report = rk.sparsity_report(model)
    assert [row[:10] for row in report.rows] == [
        ("0.weight", (3, 2, 2), 12, 10, 3, 1, 2, 1, 7.0, 5.0),
        ("0.bias", (3,), 3, 1, None, None, None, None, 3.0, math.sqrt(5)),
        ("1.weight", (3,), 3, 0, None, None, None, None, 3.0, math.sqrt(3)),
        ("1.bias", (3,), 3, 3, None, None, None, None, 0.0, 0.0),
        ("2.weight", (2, 2), 4, 2, 2, 0, 2, 1, 3.0, math.sqrt(5)),
    ]
    assert report.totals[:8] == ("total", (), 25, 16, 5, 1, 4, 2)
    assert report.totals.l1_norm == 16 and report.totals.l2_norm == pytest.approx(math.sqrt(38), rel=1e-15)
    assert report["2.weight"].share == 0.5 and report.totals.share == 0.64
    assert report[0] is report.rows and len(report) == 2
    with pytest.raises(KeyError, match=r"no parameter 'x'; there are 0\.weight, 0\.bias"):
        report["x"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=4), st.integers(0, 1000), st.floats(0, 1))
def test_counts_by_brute_force(shape: list[int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > share)
    if tensor.numel() and seed % 2:
        tensor[seed % shape[0]] = 0
        tensor[:, seed % shape[1]] = 0
    values = {index: tensor[index].item() for index in itertools.product(*map(range, shape))}
    expected = []
    for dim in (0, 1):
        groups = [[v for index, v in values.items() if index[dim] == i] for i in range(shape[dim])]
        expected += [shape[dim], sum(1 for group in groups if group and not any(group))]
    (row,) = rk.sparsity_report(Holder(tensor)).rows
    assert row[1:8] == (tuple(shape), len(values), sum(v == 0 for v in values.values()), *expected)
    assert row.l1_norm == pytest.approx(math.fsum(map(abs, values.values())), rel=1e-14, abs=0)
    assert row.l2_norm == pytest.approx(math.hypot(*values.values()), rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_dtypes(dtype: torch.dtype) -> None:
    """Sums of half-precision weights do not saturate, and one imaginary part makes an element nonzero."""
    tensor = torch.full((300, 300), 100.0).to(dtype)
    tensor[0] = 0
    if dtype.is_complex:
        tensor[1] = 100j
    (row,) = rk.sparsity_report(Holder(tensor)).rows
    assert (row.zeros, row.zero_rows, row.zero_columns) == (300, 1, 0)
    assert row.l1_norm == 299 * 300 * 100 and row.l2_norm == pytest.approx(100 * math.sqrt(299 * 300), rel=1e-14)


def test_signs_of_zero_and_what_is_no_number() -> None:
    (row,) = rk.sparsity_report(Holder(torch.tensor([[-0.0, 0.0], [math.nan, 0.0], [math.inf, 1e-45]]))).rows
    assert (row.zeros, row.zero_rows, row.zero_columns) == (3, 1, 0)
    assert math.isnan(row.l1_norm) and math.isnan(row.l2_norm)


def test_without_parameters() -> None:
    report = rk.sparsity_report(nn.ReLU())
    assert report.rows == () and report.totals == ("total", (), 0, 0, None, None, None, None, 0.0, 0.0, ())
    assert report.totals.share == 0.0
    assert "total" in str(report) and "0.0 %" in str(report)


def test_tied_parameters_count_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    report = rk.sparsity_report(model)
    assert [(row.name, row.also_named) for row in report.rows] == [("a.weight", ("b.weight",))]
    assert report["b.weight"] is report["a.weight"] and report.totals.elements == 9
    assert "a.weight = b.weight" in str(report)


def test_frozen_parameters_and_layouts_count_and_nothing_changes() -> None:
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last).requires_grad_(False)
    model.weight[2] = 0
    before = model.weight.clone()
    assert rk.sparsity_report(model).rows[0].zero_rows == 1
    assert torch.equal(model.weight, before) and model.weight.grad is None


def test_as_plain_data() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    data = json.loads(json.dumps(rk.sparsity_report(model).to_dict()))
    assert list(data) == ["weight", "bias", "total"]
    assert data["weight"]["zero_rows"] == 1 and data["weight"]["share"] == 1.0 and data["total"]["elements"] == 3


def test_printed() -> None:
    model = nn.Sequential(nn.Linear(2000, 3, bias=False), nn.PReLU())
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].weight[:2] = 0
    text = (
        "parameter  shape     zeros   share  zero rows  zero columns  l1 norm  l2 norm\n"
        "-----------------------------------------------------------------------------\n"
        "0.weight   3 x 2000  4,000  66.7 %     2 of 3    0 of 2,000     1000    22.36\n"
        "1.weight   1             0   0.0 %                              0.25     0.25\n"
        "-----------------------------------------------------------------------------\n"
        "total                4,000  66.7 %     2 of 3    0 of 2,000     1000    22.36"
    )
    report = rk.sparsity_report(model)
    assert str(report) == repr(report) == text
    cells: list[str] = []
    parser = HTMLParser()
    parser.handle_data = cells.append
    parser.feed(report._repr_html_())
    assert cells == [cell for line in text.split("\n") for cell in re.split(r"  +", line) if not cell.startswith("-")]


def test_html_is_escaped() -> None:
    model = Holder()
    model.register_parameter("<b>", nn.Parameter(torch.ones(1)))
    assert html.escape("<b>") in rk.sparsity_report(model)._repr_html_()


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        rk.sparsity_report([])
    with pytest.raises(TypeError, match=r"1\.weight is on the meta device and has no values; load the weights first"):
        rk.sparsity_report(nn.Sequential(nn.ReLU(), nn.Linear(2, 2, device="meta")))
    with pytest.raises(TypeError, match=r"weight has no shape yet; run the model once"):
        rk.sparsity_report(nn.LazyLinear(3))
