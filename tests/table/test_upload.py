"""The stock of page-locked memory that captures take from: no two of them the same piece, and none twice for one content.

What is captured is not: on a machine without a device, page-locked memory is any memory.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from regkernels.table import upload


@pytest.fixture(autouse=True)
def _empty_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_stock", torch.zeros(1 << 16, dtype=torch.uint8))
    monkeypatch.setattr(upload, "_kept", {})


def table(first: int, dtype: type = numpy.int64) -> Tensor:
    return torch.from_numpy(numpy.arange(first, first + 10, dtype=dtype))


def test_equal_tables_share_their_memory() -> None:
    """A step that is captured again and again takes no more."""
    kept = [upload._set_apart(table(1)) for _ in range(3)]
    assert len({own.data_ptr() for own in kept}) == 1
    left = len(upload._stock)
    others = [table(2), table(1, numpy.int32), table(1).reshape(2, 5), table(1).double()]
    for other in others:
        own = upload._set_apart(other)
        assert own.dtype == other.dtype
        assert torch.equal(own, other)
    assert left - len(upload._stock) == 128 + 64 + 128 + 128
    assert torch.equal(kept[0], table(1))


class Interrupted:
    """A stock from which another thread takes just when one has looked at what there is."""

    def __init__(self, stock: Tensor, other: threading.Thread) -> None:
        self._stock, self._other = stock, other

    def __len__(self) -> int:
        return len(self._stock)

    def __getitem__(self, piece: Any) -> Tensor:
        if self._other.ident is None:
            self._other.start()
            self._other.join(0.2)  # it waits for its turn
        return self._stock[piece]


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    other = threading.Thread(target=lambda: taken.append(upload._set_apart(table(100))))
    monkeypatch.setattr(upload, "_stock", Interrupted(torch.zeros(1 << 16, dtype=torch.uint8), other))
    own = upload._set_apart(table(0))
    other.join()
    assert torch.equal(own, table(0))
    assert torch.equal(taken[0], table(100))
