"""Rows of hyper-parameters that a device computes: the bits of Python's numbers, with powers rounded correctly."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch

from regkernels import optim
from regkernels.backends.triton.rows import table_of_rows
from regkernels.backends.triton.tables import BatchMemory
from regkernels.optim.step.protocol import Row
from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Hyper
from tests.support import cases
from tests.support.engine import assert_same_bits

pytestmark = pytest.mark.interpreted

CPU = torch.device("cpu")
FIELDS = Hyper._fields
SPECIAL = (0.0, -0.0, 1.0, -2.5, 0.1, 1e-310, 1e300, math.inf, -math.inf, math.nan)


def there(values: float | Sequence[float], dtype: torch.dtype = torch.float64) -> Deferred:
    return Deferred.of(torch.tensor(values, dtype=dtype))


def computed(*rows: dict[str, Any]) -> torch.Tensor:
    """The table (rows, fields) that kernels are given."""
    table = table_of_rows([Hyper.of(row) for row in rows], BatchMemory(CPU, 1), CPU)
    return table.view(-1)[: table.numel() // len(FIELDS) * len(FIELDS)].view(-1, len(FIELDS))


def assert_column(table: torch.Tensor, field: str, expected: Sequence[float]) -> None:
    column = table[: len(expected), FIELDS.index(field)]
    assert_same_bits(column, torch.tensor(expected, dtype=torch.float64), field)


def exact_power(base: float, count: int) -> float:
    """Rounds but once: fractions become the nearest float."""
    return float(Fraction(base) ** count)


# --- operations ---

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": lambda a, b: torch.tensor(a, dtype=torch.float64).div(torch.tensor(b, dtype=torch.float64)).item(),
    "is_greater": operator.gt,
    "is_equal": operator.eq,
}


def test_operations_have_the_bits_of_ieee() -> None:
    """For all pairs of numbers, more than a program computes at a time, of which the last are left over."""
    a, b = zip(*itertools.product(SPECIAL, SPECIAL), strict=True)
    fields = dict(zip(OPERATIONS, FIELDS, strict=False))
    row = {field: Deferred(name, there(a), there(b)) for name, field in fields.items()}
    table = computed({"step": 3.0, **row})
    for name, field in fields.items():
        assert_column(table, field, [float(OPERATIONS[name](x, y)) for x, y in zip(a, b, strict=True)])
    assert_column(table, "step", [3.0] * len(a))


def test_roots_floors_and_choices() -> None:
    values = [value for value in SPECIAL if not value < 0]
    row = {"lr": there(values).sqrt(), "eps": Deferred("choose", there(values), -0.0, there(values))}
    table = computed(
        row, {"decay": Deferred("floor", there([0.0, 0.9, 5.0, 2.0**32 + 0.5, -0.5, -3.0, 1e300, math.inf, math.nan]))}
    )
    assert_column(table, "lr", [math.sqrt(value) for value in values])
    assert_column(table, "eps", [-0.0 if value != 0 else value for value in values])
    assert_column(table[len(values) :], "decay", [0.0, 0.0, 5.0, 2.0**32, -1.0, -3.0, 1e300, math.inf, math.nan])


@pytest.mark.parametrize("base", [0.9, 0.999, 0.97, 0.95, 1.0 - 1e-8, 0.5, 0.0])
def test_powers_are_rounded_correctly(base: float) -> None:
    counts = [0, 1, 2, 3, 4, 7, 10, 63, 64, 65, 100, 999, 1000, 1234, 5000]
    table = computed({"lr": base ** there([float(count) for count in counts]), "eps": there(base) ** 7.0})
    assert_column(table, "lr", [exact_power(base, count) for count in counts])
    assert_column(table, "eps", [exact_power(base, 7)] * len(counts))


def test_a_vanishing_power_and_the_latest_count_of_all() -> None:
    assert_column(computed({"lr": 0.9 ** there([1e5, 2.0**53])}), "lr", [0.0, 0.0])


def test_other_powers_are_seen() -> None:
    """Where only the device knows that an exponent is none that it has."""
    assert_column(computed({"lr": 2.0 ** there([0.5, -1.0, 2.0, math.nan])}), "lr", [math.nan, math.nan, 4.0, math.nan])


# --- where numbers come from ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_are_read_where_they_lie(dtype: torch.dtype) -> None:
    value = torch.tensor(0.3, dtype=dtype)
    assert_column(computed({"lr": value, "eps": Deferred.of(value) + 1.0}), "lr", [value.item()])
    assert_column(computed({"lr": value, "eps": Deferred.of(value) + 1.0}), "eps", [value.item() + 1.0])


def test_rows_of_different_formulas_and_lengths_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    from regkernels.backends.triton import rows as module

    launch = module.launch
    monkeypatch.setattr(module, "launch", lambda kernel, *rest: launches.append(kernel) or launch(kernel, *rest))
    many = [float(number) for number in range(130)]
    table = computed(
        {"lr": 0.5}, {"lr": there(0.1) * 2.0}, {"lr": there(many), "eps": there(3.0)}, {"eps": there(2.0), "lr": 7.0}
    )
    assert len(launches) == 1
    assert_column(table, "lr", [0.5, 0.2, *many, 7.0])
    assert_column(table, "eps", [0.0, 0.0, *[3.0] * 130, 2.0])
    assert_column(table, "decay", [1.0] * 133)


def test_tables_are_uploaded_again_only_where_something_else_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from regkernels.backends.triton import tables

    uploads = []
    upload = tables.upload
    monkeypatch.setattr(tables, "upload", lambda *table: uploads.append(table) or upload(*table))
    memory, lr = BatchMemory(CPU, 1), torch.tensor(0.1, dtype=torch.float64)
    for value, constant, expected in ((0.1, 2.0, 1), (0.3, 2.0, 1), (0.3, 5.0, 2)):
        lr.fill_(value)
        table = table_of_rows([Hyper.of({"lr": Deferred.of(lr) * constant})], memory, CPU)
        assert_column(table.view(-1)[: len(FIELDS)].view(1, -1), "lr", [value * constant])
        assert len(uploads) == expected


# --- formulas ---


class Count(int):
    """The number of a step, by which powers are rounded correctly: C's need not be."""

    def __rpow__(self, base: float) -> float:
        return exact_power(base, int(self))


@pytest.mark.parametrize("decay_mode", ["coupled", "decoupled", "prox"])
@pytest.mark.parametrize("rule", cases.RULES)
def test_rows_of_every_rule_are_those_of_the_host(rule: str, decay_mode: str) -> None:
    """Whichever of their numbers are on the device."""
    name, own = cases.RULES[rule]
    mode = "decoupled" if rule in cases.WITHOUT_METRIC else decay_mode
    l1_mode = "decoupled" if rule in cases.WITHOUT_METRIC else "prox"
    options = {**cases.STRENGTHS, **own, "weight_decay_mode": mode, "l1_mode": l1_mode}
    optimizer = getattr(optim, name)([torch.nn.Parameter(torch.zeros(1))], **options)
    group = {**optimizer.param_groups[0], "capturable": True}
    betas = {"betas": tuple(torch.tensor(beta, dtype=torch.float64) for beta in group.get("betas", ()))}
    there_too = {key: torch.tensor(value, dtype=torch.float64) for key, value in cases.STRENGTHS.items()}
    if "betas" in group:
        there_too = {**there_too, **betas}  # type: ignore[dict-item]
    for count in (1, 2, 5, 6, 1000):
        step: Any = Count(count)
        expected = Hyper.of(optimizer._hyper(group, Row(0, step, count == 1)))
        counted = optimizer._hyper(group, Row(0, there(float(count)), count == 1))
        all_there = optimizer._hyper({**group, **there_too}, Row(0, there(float(count)), count == 1))
        for fields in (counted, all_there):
            assert_same_bits(computed(fields)[0], torch.tensor(expected, dtype=torch.float64), f"{count}")
