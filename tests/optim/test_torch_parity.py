"""With L1 off the optimizers are torch.optim's: torch's own matrix of arguments, run side by side, states included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import (
    optim_inputs_func_adagrad,
    optim_inputs_func_adam,
    optim_inputs_func_adamw,
    optim_inputs_func_radam,
    optim_inputs_func_rmsprop,
    optim_inputs_func_sgd,
)

from regkernels import optim

STEPS = 20
SHAPES = [(), (1,), (7,), (33, 5), (2, 3, 4, 5), (0,), (3, 0), (129, 65)]
TOLERANCE = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.float32: 2e-6, torch.complex64: 4e-6}


class Entry(NamedTuple):
    optimizer: str
    title: str
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.title}"


FUNCTIONS = {
    "Adagrad": optim_inputs_func_adagrad,
    "Adam": optim_inputs_func_adam,
    "AdamW": optim_inputs_func_adamw,
    "RAdam": optim_inputs_func_radam,
    "RMSprop": optim_inputs_func_rmsprop,
    "SGD": optim_inputs_func_sgd,
}
FUSED = ("Adagrad", "Adam", "AdamW", "SGD")


def _matrix() -> list[Entry]:
    """torch's entries for the CPU, and those that torch runs on accelerators only."""
    found = {
        (name, entry.desc): Entry(name, entry.desc, entry.kwargs)
        for name, function in FUNCTIONS.items()
        for device in ("cpu", "cuda", "mps")
        for entry in function(device)
    }
    return list(found.values())


MATRIX = _matrix()
OPTIONS = {"amsgrad", "centered", "dampening", "initial_accumulator_value", "lr", "lr_decay", "maximize", "nesterov"}
REFUSED = {"capturable": "capturable=True needs parameters on an accelerator"}
"""Keys of the matrix that regkernels refuses for CPU parameters, with the reason it gives."""

RADAM_BETAS = [(0.9, 0.9), (0.0, 0.0), (0.5, 1 / 3), (0.9, 0.6), (0.9, 0.7), (0.8, 0.714), (0.9, 0.995)]
"""Second ones with which the variance is known from the first steps, from later ones, or never; 1/3 and 0.6 make 0 of the
denominator of what is not known."""

OWN = [
    Entry("Adam", "everything", {"amsgrad": True, "maximize": True, "weight_decay": 0.1, "eps": 1e-3, "lr": 0.1}),
    Entry("Adam", "betas 0", {"betas": (0.0, 0.0), "lr": 0.01}),
    Entry("Adam", "no eps", {"eps": 0.0}),
    Entry("Adam", "decoupled", {"decoupled_weight_decay": True, "weight_decay": 0.3, "lr": 0.1}),
    Entry("Adam", "tensor weight_decay", {"weight_decay": torch.tensor(0.5, dtype=torch.float64)}),
    Entry("AdamW", "no decay", {"weight_decay": 0.0}),
    Entry("AdamW", "everything", {"amsgrad": True, "maximize": True, "weight_decay": 0.5, "lr": 0.1}),
    Entry("SGD", "everything", {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2, "maximize": True, "lr": 0.1}),
    Entry("SGD", "nesterov, maximize", {"momentum": 0.5, "nesterov": True, "maximize": True, "lr": 0.1}),
    Entry("SGD", "momentum above 1", {"momentum": 1.01, "lr": 1e-3}),
    Entry("SGD", "negative dampening", {"momentum": 0.9, "dampening": -0.5}),
    Entry("RMSprop", "alpha 0", {"alpha": 0.0, "lr": 1e-3}),
    Entry("RMSprop", "momentum alone", {"momentum": 0.9, "alpha": 0.8, "eps": 1e-3, "maximize": True}),
    Entry("RMSprop", "momentum above 1", {"momentum": 1.01, "lr": 1e-3}),
    Entry("RMSprop", "tensor weight_decay", {"weight_decay": torch.tensor(0.5, dtype=torch.float64)}),
    Entry("Adagrad", "everything", {"lr": 0.1, "lr_decay": 0.3, "initial_accumulator_value": 2.0, "maximize": True}),
    Entry("Adagrad", "no eps", {"eps": 0.0, "initial_accumulator_value": 1e-3}),
    *(Entry("RAdam", f"betas {betas}", {"betas": betas, "lr": 0.01}) for betas in RADAM_BETAS),
    Entry("RAdam", "large eps", {"betas": (0.7, 0.9), "eps": 0.3, "lr": 0.1, "maximize": True}),
]
ALL = [*MATRIX, *OWN]
RUNNABLE = [entry._replace(kwargs={k: v for k, v in entry.kwargs.items() if k not in REFUSED}) for entry in ALL]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are small here: waking up threads would take most of the time


def test_the_matrix_is_there() -> None:
    """torch could rename or empty its lists; then the tests below would pass without testing."""
    assert {entry.optimizer for entry in MATRIX} == FUNCTIONS.keys()
    assert len(MATRIX) >= 56
    assert {key for entry in MATRIX for key in entry.kwargs} >= OPTIONS
    assert len([entry for entry in MATRIX if REFUSED.keys() & entry.kwargs.keys()]) >= 13


def make(entry: Entry, params: Any, *, theirs: bool = False, **more: Any) -> torch.optim.Optimizer:
    if theirs:
        # torch computes with a tensor lr in the tensor's type, regkernels in double: compare in double.
        kwargs = {key: _widened(value) for key, value in entry.kwargs.items()}
        return getattr(torch.optim, entry.optimizer)(params, foreach=False, **kwargs)
    return getattr(optim, entry.optimizer)(params, **entry.kwargs, **more)


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_widened(item) for item in value)
    return value.double() if isinstance(value, Tensor) else value


def tensors(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().clone()) for param in params]


def assert_near(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float, what: str) -> None:
    """Every element to within ``tolerance`` of the largest one: single ones may be left over from a cancellation."""
    scale = max((tensor.detach().abs().max().item() for tensor in theirs if tensor.numel()), default=0.0)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        difference = (a.detach() - b.detach()).abs()
        bad = ~(difference <= tolerance * scale)  # so that NaN is bad
        assert not bad.any(), f"{what} {index} of shape {tuple(a.shape)} differs by {difference.max()}, scale {scale}"


def assert_same_states(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, tolerance: float) -> None:
    mine, other = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert mine.keys() == other.keys()
    assert [state.keys() for state in mine.values()] == [state.keys() for state in other.values()]
    for name in {name for state in other.values() for name in state}:
        values = [[states[key][name] for key in other if name in other[key]] for states in (mine, other)]
        assert_near(*values, 0.0 if name == "step" else tolerance, name)


def run(entry: Entry, dtype: torch.dtype, layout: Any = lambda grad: grad, **more: Any) -> None:
    mine = tensors(dtype)
    other = copies(mine)
    ours, theirs = make(entry, mine, **more), make(entry, other, theirs=True)
    for _ in range(STEPS):
        for a, b in zip(mine, other, strict=True):
            gradient = torch.randn_like(a)
            a.grad, b.grad = layout(gradient), gradient.clone()
        ours.step()
        theirs.step()
    assert_near(mine, other, TOLERANCE[dtype], "parameter")
    assert_same_states(ours, theirs, TOLERANCE[dtype])


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


def _strided(gradient: Tensor) -> Tensor:
    """Every second column of a wider tensor: what torch's fused kernels get wrong without an error."""
    if gradient.dim() < 1:
        return gradient
    return torch.stack([gradient, torch.full_like(gradient, torch.nan)], dim=-1).flatten(-2)[..., ::2]


LAYOUTS = {
    "strided": _strided,
    "transposed": lambda g: g.mT.contiguous().mT if g.dim() > 1 else g,
    "channels_last": lambda g: g.to(memory_format=torch.channels_last) if g.dim() == 4 else g,
    "negated view": lambda g: torch._neg_view(-g) if not g.is_complex() else g,
    "conjugated view": lambda g: g.conj().resolve_conj().conj() if g.is_complex() else g,
    "at an odd offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view(g.shape),
    "requires a gradient": lambda g: g.requires_grad_(),
}
SOME = [
    Entry("SGD", "plain", {"lr": 0.1}),
    Entry("SGD", "momentum", {"momentum": 0.9, "nesterov": True}),
    Entry("AdamW", "amsgrad", {"amsgrad": True}),
    Entry("RMSprop", "both", {"centered": True, "momentum": 0.9, "eps": 1e-3}),
]


@pytest.mark.parametrize("entry", SOME, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_layouts_of_gradients(entry: Entry, layout: str, dtype: torch.dtype) -> None:
    run(entry, dtype, LAYOUTS[layout])


@pytest.mark.parametrize("entry", SOME, ids=str)
@pytest.mark.parametrize("other", LAYOUTS)
def test_layouts_that_change_from_step_to_step(entry: Entry, other: str) -> None:
    """A decision made for one step must not be kept for the next."""
    layouts = [lambda g: g, LAYOUTS[other], _strided, LAYOUTS[other]]
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
    "strided": _strided,
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
