"""What compaction makes of modules that differ in training, and of what forward reads, changes and is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.structure.modules import Calling, zeroed
from tests.structure.test_compact import assert_same
from tests.structure.test_compact_limits import LEFT
from tests.support.networks import NETWORKS, with_zeros

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("case", ["dropout", "statistics that have not settled"])
def test_eval_only_removes_what_differs_in_training(case: str) -> None:
    make, shape, _ = LEFT[case]
    model = zeroed(make())
    compacted = rk.compact(model, eval_only=True)
    assert compacted.model[0].out_features == 5
    assert_same(model, compacted.model, torch.randn(shape, dtype=torch.float64), (False,))


def test_statistics_settle() -> None:
    model = zeroed(LEFT["statistics that have not settled"][0]()).train()
    for _ in range(400):
        model(torch.randn(5, 4).double())
    small = rk.compact(model).model
    assert small[0].out_features == small[1].num_features == 5
    assert_same(model, small, torch.randn(5, 4).double())


def test_some_modules_in_evaluation_mode() -> None:
    """Neither all in training nor all in evaluation mode: the same in that state, too."""
    model = with_zeros(NETWORKS["VGG"][0](), 1)
    model[0][1].eval()
    model[3][1].eval()
    small = rk.compact(model).model
    x = torch.randn(3, 1, 8, 8).double()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_what_forward_does_in_training_only_counts() -> None:
    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y.cumsum(-1) if m.training else y)

    model = zeroed(Calling(forward))
    assert not rk.compact(model).removed
    assert rk.compact(model, eval_only=True).model.first.out_features == 5


def test_what_is_read_from_elsewhere_in_training_counts() -> None:
    model = zeroed(Calling(lambda m, x: m.last(x if m.training else m.first(x)), nn.Linear(6, 6)))
    assert not rk.compact(model).removed
    small = rk.compact(model, eval_only=True).model
    assert small.first.out_features == small.last.in_features == 5


def test_what_forward_does_in_the_state_it_is_in_counts() -> None:
    def forward(m: Calling, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y.cumsum(-1) if m.training and not m.first.training else y)

    model = zeroed(Calling(forward))
    assert rk.compact(model).model.first.out_features == 5
    model.first.eval()
    assert not rk.compact(model).removed


@pytest.mark.parametrize(("bias", "left"), [(1.0, 5), (2.0, 6)])
def test_concatenated_along_another_dimension(bias: float, left: int) -> None:
    """The constants have to be the same in all parts."""
    model = Calling(lambda m, x: m.last(torch.cat([m.first(x), m.extra(x)], -2)), extra=nn.Linear(4, 6))
    model = zeroed(model)
    with torch.no_grad():
        model.extra.bias[1] = bias
    x = torch.randn(3, 2, 4).double()
    small = rk.compact(model, x).model
    assert small.first.out_features == small.extra.out_features == left
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_optional_arguments_are_at_their_defaults_or_given() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None, mixed: bool = False) -> Tensor:
            y = self.first(x)
            if mask is not None:
                y = y * mask
            return self.last(y.cumsum(-1) if mixed else y)

    model, x = zeroed(Optional()), torch.randn(5, 4).double()
    assert rk.compact(model).model.first.out_features == 5
    assert rk.compact(model, x).model.first.out_features == 5
    assert rk.compact(model, (x, torch.ones(6).double())).model.first.out_features == 6
    assert rk.compact(model, (x, None, True)).model.first.out_features == 6
