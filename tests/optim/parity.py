"""torch's own matrix of arguments, and a run of its optimizer beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def beside_nan(gradient: Tensor) -> Tensor:
    """Every second column of a wider tensor: what torch's fused kernels get wrong without an error."""
    if gradient.dim() < 1:
        return gradient
    return torch.stack([gradient, torch.full_like(gradient, torch.nan)], dim=-1).flatten(-2)[..., ::2]


SOME = [
    Entry("SGD", "plain", {"lr": 0.1}),
    Entry("SGD", "momentum", {"momentum": 0.9, "nesterov": True}),
    Entry("AdamW", "amsgrad", {"amsgrad": True}),
    Entry("RMSprop", "both", {"centered": True, "momentum": 0.9, "eps": 1e-3}),
]
