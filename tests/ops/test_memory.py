"""What is left of a tensor between forward and backward, or of its storage: an error that says so, never foreign memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regkernels as rk
from regkernels import prox

pytestmark = pytest.mark.attacks

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, a: rk.elastic_net_penalty(x, 0.1, 0.2),
    "weighted": lambda x, a: rk.l1_penalty(x, 0.1, a),
    "huber": lambda x, a: rk.huber_penalty(x, 0.1),
    "groups": lambda x, a: rk.group_l1_penalty(x, 0.1),
    "prox of groups": lambda x, a: prox.group_l1(x, 0.1).sum(),
    "weighted prox": lambda x, a: prox.weighted_l1(x, 0.1, a).sum(),
}
KEPT = [*((name, 0) for name in FUNCTIONS if name != "weighted prox"), ("weighted", 1), ("weighted prox", 1)]
"""Which of its arguments a function looks at in the backward pass."""


def tensors() -> tuple[Tensor, Tensor]:
    return (torch.arange(12.0).reshape(3, 4) - 5).requires_grad_(), torch.ones(3, 4)


EXCHANGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "smaller": (lambda t: torch.zeros(1, 4), r"shape \(3, 4\) .* shape \(1, 4\)"),
    "larger": (lambda t: torch.zeros(3000, 4), r"shape \(3, 4\) .* shape \(3000, 4\)"),
    "of another type": (lambda t: t.detach().double(), "torch.float32.*torch.float64"),
}


@pytest.mark.parametrize("change", EXCHANGES)
@pytest.mark.parametrize(("name", "which"), KEPT)
def test_exchanged_before_backward(name: str, which: int, change: str) -> None:
    pair = tensors()
    value = FUNCTIONS[name](*pair)
    made, text = EXCHANGES[change]
    pair[which].data = made(pair[which])
    with pytest.raises(RuntimeError, match=f"(?s){text}.*its data was exchanged in between"):
        value.backward()
    assert pair[0].grad is None


@pytest.mark.parametrize("bytes_left", [0, 16])
@pytest.mark.parametrize(("name", "which"), KEPT)
def test_freed_before_backward(name: str, which: int, bytes_left: int) -> None:
    pair = tensors()
    value = FUNCTIONS[name](*pair)
    pair[which].untyped_storage().resize_(bytes_left)
    with pytest.raises(RuntimeError, match=r"of shape \(3, 4\) has no memory any more"):
        value.backward()


@pytest.mark.parametrize("bytes_left", [0, 16])
@pytest.mark.parametrize(("name", "which"), [*KEPT, ("weighted prox", 0)])
def test_freed(name: str, which: int, bytes_left: int) -> None:
    pair = tensors()
    pair[which].untyped_storage().resize_(bytes_left)
    with pytest.raises(RuntimeError, match=r"of shape \(3, 4\) has no memory any more"):
        FUNCTIONS[name](*pair)


def test_messages_name_the_argument() -> None:
    x, weights = tensors()
    weights.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"weights\[0\] of shape \(3, 4\) has no memory any more"):
        rk.l1_penalty([x], 0.1, [weights])
    with pytest.raises(RuntimeError, match=r"weights of shape \(3, 4\) has no memory any more"):
        prox.weighted_l1(x, 0.1, weights)
    with pytest.raises(RuntimeError, match=r"params\[1\] of shape \(3, 4\) has no memory any more"):
        rk.l1_penalty([x, weights], 0.1)
    for function in (prox.soft_threshold, prox.soft_threshold_):
        with pytest.raises(RuntimeError, match=r"of shape \(3, 4\) has no memory any more"):
            function(weights, 0.1)


def test_storages_with_an_offset_and_gaps() -> None:
    """The storage holds as many bytes as there are elements, but not where these are."""
    whole = torch.ones(40)
    late, sparse = whole[20:], whole.as_strided((4,), (13,))
    whole.untyped_storage().resize_(4 * 30)
    for own in (late, sparse):
        with pytest.raises(RuntimeError, match="has no memory any more"):
            rk.l1_penalty(own, 1.0)
    assert rk.l1_penalty(whole[:30].as_strided((3,), (13,)), 1.0) == 3


def test_operators_of_the_library_take_no_factors_of_another_shape() -> None:
    ops = torch.ops.regkernels
    upstream, x = torch.tensor(1.0), torch.ones(4, 4)
    for call in (
        lambda a: ops.weighted_l1([x], [a], 0.1),
        lambda a: ops.weighted_l1_gradient(upstream, [x], [a], 0.1),
    ):
        with pytest.raises(ValueError, match=r"weights of shape \(1, 4\).*parameter of shape \(4, 4\)"):
            call(torch.ones(1, 4))


def test_saved_tensors_in_another_layout() -> None:
    """Hooks that move saved tensors bring back contiguous ones."""
    base = torch.arange(12.0, dtype=torch.float64).reshape(4, 3) - 5
    found = []
    for hooks in (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    ):
        x = base.clone().requires_grad_()
        with hooks:
            value = prox.group_l1(x.T, 0.5)
        (value * base.T).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)
