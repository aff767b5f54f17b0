"""With L1 off the optimizers are torch.optim's: torch's own matrix of arguments, run side by side, states included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regkernels import optim
from tests.optim.parity import (
    FUNCTIONS,
    FUSED,
    MATRIX,
    OPTIONS,
    REFUSED,
    RUNNABLE,
    SOME,
    STEPS,
    TOLERANCE,
    Entry,
    assert_near,
    assert_same_states,
    copies,
    make,
    run,
    tensors,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_matrix_is_there() -> None:
    """torch could rename or empty its lists; then the tests below would pass without testing."""
    assert {entry.optimizer for entry in MATRIX} == FUNCTIONS.keys()
    assert len(MATRIX) >= 56
    assert {key for entry in MATRIX for key in entry.kwargs} >= OPTIONS
    assert len([entry for entry in MATRIX if REFUSED.keys() & entry.kwargs.keys()]) >= 13


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("entry", RUNNABLE, ids=str)
def test_matrix(entry: Entry, dtype: torch.dtype) -> None:
    run(entry, dtype)


@pytest.mark.parametrize(
    ("optimizer", "flag"), [*((name, "foreach") for name in FUNCTIONS), *((name, "fused") for name in FUSED)]
)
def test_flags_that_choose_an_implementation_of_torch_change_nothing(optimizer: str, flag: str) -> None:
    for value in (True, False, None):
        run(Entry(optimizer, flag, {}), torch.float64, **{flag: value})
        assert make(Entry(optimizer, flag, {}), tensors(torch.float64), **{flag: value}).param_groups[0][flag] is value


@pytest.mark.parametrize("entry", [e for e in MATRIX if REFUSED.keys() & e.kwargs.keys()], ids=str)
def test_entries_for_accelerators_are_refused(entry: Entry) -> None:
    params = tensors(torch.float32)
    before = copies(params)
    for param in params:
        param.grad = torch.randn_like(param)
    with pytest.raises(ValueError, match=REFUSED["capturable"]):
        make(entry, params).step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


@pytest.mark.parametrize("optimizer", FUNCTIONS)
def test_differentiable_is_refused(optimizer: str) -> None:
    with pytest.raises(ValueError, match=r"differentiable=True is not supported.*use torch\.optim"):
        make(Entry(optimizer, "", {}), tensors(torch.float32), differentiable=True)


DEFAULT_EPS = [
    Entry("Adam", "default eps", {}),
    Entry("RMSprop", "default eps", {"alpha": 0.5}),  # with 0.99 the first step is 10 * lr
    Entry("Adagrad", "default eps", {}),
    Entry("RAdam", "default eps", {}),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entry", [*SOME, *DEFAULT_EPS], ids=str)
def test_half_precision_is_float32_rounded_after_each_step(entry: Entry, dtype: torch.dtype) -> None:
    """Among others: SGD moves the weights at all, and an eps below float16's range does no harm."""
    mine = tensors(dtype)
    start = copies(mine)
    other = [nn.Parameter(param.detach().float()) for param in mine]
    entry = entry._replace(kwargs={**entry.kwargs, "lr": 0.05})  # moves bfloat16, too
    ours, theirs = make(entry, mine), make(entry, other, theirs=True)
    for _ in range(STEPS):
        for a, b in zip(mine, other, strict=True):
            a.grad = torch.randn_like(a) * (torch.arange(a.numel()).view(a.shape) % 3 > 0)
            b.grad = a.grad.float()
        ours.step()
        theirs.step()
        for b in other:
            b.data = b.data.to(dtype).float()
    for a, b, c in zip(mine, other, start, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 2)
        assert (a != b.to(dtype)).float().mean() < 0.01 or a.numel() == 0
        assert a.isfinite().all() and (a.numel() < 3 or (a != c).float().mean() > 0.5)
    for state in ours.state_dict()["state"].values():
        assert all(value.dtype == torch.float32 for value in state.values())


def test_groups_with_options_of_their_own() -> None:
    mine = tensors(torch.float64)
    other = copies(mine)
    options = [{"lr": 0.1, "betas": (0.5, 0.9)}, {"weight_decay": 0.3, "maximize": True}, {"amsgrad": True, "eps": 0.1}]
    groups = [[{"params": params[i::3], **options[i]} for i in range(3)] for params in (mine, other)]
    ours, theirs = optim.AdamW(groups[0], lr=0.02), torch.optim.AdamW(groups[1], lr=0.02, foreach=False)
    for _ in range(STEPS):
        for a, b in zip(mine, other, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    assert_near(mine, other, 1e-12, "parameter")
    assert_same_states(ours, theirs, 1e-12)
