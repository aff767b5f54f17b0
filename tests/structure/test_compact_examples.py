"""Examples by position and by name: arguments that lead forward elsewhere than its defaults do are followed there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk

pytestmark = pytest.mark.usefixtures("one_thread")


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.weight[1::2] = 0
            self.first.bias[1::2] = 0

    def forward(self, x: Tensor, mask: Tensor | None = None, doubled: bool = False, *, shift: float = 0.0) -> Tensor:
        hidden = torch.relu(self.first(x))
        if mask is not None:
            hidden = hidden + mask
        return self.last(hidden) * (2 if doubled else 1) + shift


X, MASK = torch.randn(5, 6), torch.ones(5, 1)


@pytest.mark.parametrize(
    ("example", "removed"),
    [
        (X, True),
        ((X,), True),
        ({"x": X}, True),
        ({"doubled": True, "x": X}, True),
        ((X, MASK), False),  # the dead units are 1 then
        ({"mask": MASK, "x": X}, False),
    ],
)
def test_arguments_by_position_and_by_name(example: Any, removed: bool) -> None:
    model = Optional()
    assert bool(rk.compact(model, example).removed) is removed


def test_arguments_that_forward_does_not_take() -> None:
    for example, message in (
        ({"x": X, "musk": MASK}, "does not fit forward of Optional: got an unexpected keyword argument 'musk'"),
        ({"mask": MASK}, "does not fit forward of Optional: missing a required argument: 'x'"),
        ({"x": X, "shift": 1.0}, "has shift, which forward of Optional takes by name only: wrap the model"),
    ):
        with pytest.raises(TypeError, match=message):
            rk.compact(Optional(), example)


def test_a_dictionary_of_other_names_says_where_it_went() -> None:
    with pytest.raises(TypeError) as raised:
        rk.compact(Optional(), {"inputs": X})
    assert (
        "none is an argument of forward (x, mask, doubled, shift), was passed as the first" in raised.value.__notes__[0]
    )


def test_a_dictionary_may_be_the_argument() -> None:
    class OfBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Optional()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["x"])

    found = rk.compact(OfBatch(), {"x": X})
    assert found.model({"x": X}).shape == (5, 2)
