"""With L1 off the optimizers are torch.optim's, wherever weights and gradients lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.optim.parity import SHAPES, SOME, Entry, assert_near, assert_same_states, beside_nan, make, run

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {
    "strided": beside_nan,
    "transposed": lambda g: g.mT.contiguous().mT if g.dim() > 1 else g,
    "channels_last": lambda g: g.to(memory_format=torch.channels_last) if g.dim() == 4 else g,
    "negated view": lambda g: torch._neg_view(-g) if not g.is_complex() else g,
    "conjugated view": lambda g: g.conj().resolve_conj().conj() if g.is_complex() else g,
    "at an odd offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view(g.shape),
    "requires a gradient": lambda g: g.requires_grad_(),
}


@pytest.mark.parametrize("entry", SOME, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_layouts_of_gradients(entry: Entry, layout: str, dtype: torch.dtype) -> None:
    run(entry, dtype, LAYOUTS[layout])


@pytest.mark.parametrize("entry", SOME, ids=str)
@pytest.mark.parametrize("other", LAYOUTS)
def test_layouts_that_change_from_step_to_step(entry: Entry, other: str) -> None:
    """A decision made for one step must not be kept for the next."""
    layouts = [lambda g: g, LAYOUTS[other], beside_nan, LAYOUTS[other]]
    calls = iter(range(10**6))
    run(entry, torch.float64, lambda g: layouts[next(calls) // len(SHAPES) % len(layouts)](g))


WEIGHT_LAYOUTS = {
    "transposed": lambda: torch.randn(5, 33, dtype=torch.float64).mT,
    "channels_last": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(8, 9, dtype=torch.float64)[:, ::2],
    "rows": lambda: torch.randn(8, 9, dtype=torch.float64)[2:5],
    "permuted": lambda: torch.randn(3, 4, 5, dtype=torch.float64).permute(2, 0, 1),
    "negated view": lambda: torch._neg_view(torch.randn(17, dtype=torch.float64)),
    "0-dim view": lambda: torch.randn(3, dtype=torch.float64)[1],
}
GRADIENT_LAYOUTS = {
    "as the weight": torch.clone,
    "contiguous": lambda g: g.contiguous(),
    "strided": beside_nan,
    "by turns": None,
}


@pytest.mark.parametrize("gradient", GRADIENT_LAYOUTS)
@pytest.mark.parametrize("weight", WEIGHT_LAYOUTS)
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_layouts_of_weights(entry: Entry, weight: str, gradient: str) -> None:
    """Weights, states that can be read and saved at any time, and the elements around a view."""
    p = nn.Parameter(WEIGHT_LAYOUTS[weight]())
    q = nn.Parameter(p.detach().clone())
    ours, theirs = make(entry, [p]), make(entry, [q], theirs=True)
    layouts = [layout for layout in GRADIENT_LAYOUTS.values() if layout]
    for step in range(6):
        g = torch.randn_like(p)
        p.grad = (GRADIENT_LAYOUTS[gradient] or layouts[step % 3])(g)
        q.grad = g.clone()
        ours.step()
        theirs.step()
        assert_near([p], [q], 1e-12, f"step {step}, parameter")
        assert_same_states(ours, theirs, 1e-12)


def test_elements_around_a_view_are_left_alone() -> None:
    base = torch.randn(6, 8)
    before = base.clone()
    p = nn.Parameter(base[1:4, ::2])
    p.grad = torch.ones(3, 4)
    optim.SGD([p], lr=1.0).step()
    before[1:4, ::2] -= 1
    assert torch.equal(base, before)
