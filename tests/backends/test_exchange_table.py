"""The table through which the extension reads addresses: without it, or with one of another version, steps build their plans anew."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import optim
from regkernels.backends import extension
from tests.backends.test_choice import assert_same_results, results

pytestmark = pytest.mark.skipif(extension.C is None, reason="the extension is not built")

NAME = b"dlpack_exchange_api"
NEXT = (ctypes.c_uint64 * 8)(9)  # major version 9, nothing older
TABLES: dict[str, Any] = {"none": None, "of another version": ctypes.addressof(NEXT), "no table": 3}


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    given = TABLES[request.param]
    if request.param == "of another version":
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        given = make(given, NAME, None)
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", given)
    return


@pytest.mark.usefixtures("table")
def test_steps_do_without_it() -> None:
    assert not extension.keeps_plans()
    without = results()
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = optim.SGD([param], lr=0.5)
    optimizer.step()
    param.grad = torch.full((3,), 0.5)  # elsewhere in memory
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.25))
    torch.Tensor.__dlpack_c_exchange_api__ = TABLE  # type: ignore[attr-defined]
    assert extension.keeps_plans()
    assert_same_results(without, results())


TABLE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
