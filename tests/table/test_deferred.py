"""Arithmetic that is written down for a device: torch, which stands in for it where there are no kernels, computes Python's numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from regkernels.table.deferred import Deferred
from regkernels.table.hyper import Hyper, clip_factor, number, on_host, one_by_one, select, square_root

CPU = torch.device("cpu")
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "gt", "mod")
}


def there(value: float, dtype: torch.dtype = torch.float64) -> Deferred:
    return Deferred.of(torch.tensor(value, dtype=dtype))


@pytest.mark.parametrize("name", BINARY)
def test_operations_are_those_of_python(name: str) -> None:
    """In both orders, whichever of the two the host knows. Quotients too: torch divides by a number in another way."""
    for a, b in ((0.1, 3.0), (7.3, 2.0), (1e-3, 49.0)):
        expected = float(BINARY[name](a, b))
        for one, other in ((there(a), b), (a, there(b)), (there(a), there(b))):
            if name not in ("gt", "mod") or isinstance(one, Deferred):
                assert float(BINARY[name](one, other)) == expected


def test_functions_of_numbers_take_both() -> None:
    assert float(square_root(there(2.0))) == math.sqrt(2.0)
    assert float(-there(0.3)) == -0.3
    for condition in (True, False):
        assert float(select(there(condition, torch.bool), 0.1, 0.7)) == select(condition, 0.1, 0.7)
    for norm in (0.3, 3.7, math.inf, math.nan, 0.0):
        expected = clip_factor(norm * norm, 0.5)
        assert float(clip_factor(there(norm * norm), 0.5)) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_roots_are_those_of_the_host() -> None:
    """Of scalars and vectors; torch calls a library for them, which on some processors is an ulp off for one in a hundred."""
    numbers = [k / 8 for k in range(1, 2001)]
    roots = [math.sqrt(number) for number in numbers]
    assert square_root(Deferred.of(torch.tensor(numbers, dtype=torch.float64))).computed(CPU, {}).tolist() == roots
    assert [float(square_root(torch.tensor(number, dtype=torch.float64))) for number in numbers] == roots
    assert [float(square_root(Deferred.of(torch.tensor(number, dtype=torch.float64)))) for number in numbers] == roots


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_a_tensor_of_any_type_and_shape_is_the_number_in_it(dtype: torch.dtype) -> None:
    for shape in ((), (1,), (1, 1)):
        tensor = torch.full(shape, 3, dtype=dtype)
        value = number(tensor, {"capturable": True})
        assert float(value * 0.1) == 3.0 * 0.1
    negative = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag  # its sign is not in memory
    assert float(Deferred.of(negative)) == -1.0


def test_what_lies_there_is_read_when_it_is_computed() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    threshold = number(lr, {"capturable": True}) * 2.0
    lr.fill_(0.4)
    assert float(threshold) == 0.8


def test_rows_become_numbers_or_one_row_each() -> None:
    vector, lr = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), there(0.1)
    assert on_host([Hyper(eps=0.5), Hyper.of({"lr": lr, "threshold": lr * 3.0})], CPU) == [
        Hyper(eps=0.5),
        Hyper(lr=0.1, threshold=0.1 * 3.0),
    ]
    row = Hyper.of({"lr": lr, "eps": 0.5, "threshold": lr * vector})
    assert row.multiplicity == 3
    expected = [Hyper(lr=0.1, eps=0.5, threshold=0.1 * factor) for factor in (1.0, 2.0, 3.0)]
    assert [Hyper(*map(float, own)) for own in one_by_one([row], CPU)] == expected


@pytest.mark.parametrize(
    "question",
    [bool, lambda x: x == 1.0, lambda x: x != 1.0, lambda x: max(x, 0.1), lambda x: x in [0.1]],
    ids=["bool", "==", "!=", "max", "in"],
)
def test_what_only_the_device_could_answer_is_refused(question: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"only a device knows was .*select and square_root"):
        question(there(1.0) * 2.0)


@pytest.mark.parametrize("exponent", [-1, 0.5, -0.5, math.nan, math.inf])
def test_powers_that_kernels_do_not_have_are_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match=f"exponent {exponent}"):
        there(2.0) ** exponent
