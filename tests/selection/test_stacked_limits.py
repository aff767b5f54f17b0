"""Models that are trained together: what is refused, and what is noticed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from regkernels import optim
from regkernels.selection import StackedModels
from tests.selection.stacking import batches, network, together


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stacked = StackedModels([network(k, torch.float32) for k in range(3)])
        together(stacked, optim.AdamW(stacked.param_groups([{"l1": 0.01}] * 3)), batches(3, torch.float32))


# --- what is refused ---


def wider(model: nn.Module) -> nn.Module:
    model[0] = nn.Linear(6, 9, dtype=torch.float64)
    return model


BAD_MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "none": (lambda: [], ValueError, "models is empty"),
    "one module": (lambda: network(0), TypeError, "got one Sequential; pass copies"),
    "a number": (lambda: 3, TypeError, "got int"),
    "no module": (lambda: [network(0), "model"], TypeError, r"models\[1\] must be a torch.nn.Module, got str"),
    "the same twice": (
        lambda: [network(0)] * 2,
        ValueError,
        r"models\[1\] and models\[0\] share the tensor '0.weight'",
    ),
    "another shape": (lambda: [network(0), wider(network(0))], ValueError, r"models\[1\] is built otherwise"),
    "another type": (lambda: [network(0), network(0, torch.float32)], ValueError, "parameter '0.weight'"),
    "another layer": (
        lambda: [network(0), nn.Sequential(*network(0)[:1], nn.ReLU(), network(0)[2])],
        ValueError,
        "class of module '1' is ReLU, there it is Tanh",
    ),
    "another dropout": (
        lambda: [nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)) for p in (0.1, 0.2)],
        ValueError,
        "description of module '1' is p=0.2",
    ),
    "another mode": (lambda: [network(0), network(1).eval()], ValueError, "training of the module is False"),
    "frozen": (lambda: [network(0), network(1).requires_grad_(False)], ValueError, "built otherwise"),
    "lazy": (lambda: [nn.LazyLinear(3), nn.LazyLinear(3)], ValueError, "run a forward pass"),
    "nothing to train": (lambda: [network(k).requires_grad_(False) for k in range(2)], ValueError, "no trainable"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(case: str) -> None:
    make, error, text = BAD_MODELS[case]
    models = make()
    tensors = [(p, p.data_ptr()) for m in models for p in m.parameters()] if case in ("another shape", "frozen") else []
    with pytest.raises(error, match=text):
        StackedModels(models)
    assert all(tensor.data_ptr() == address for tensor, address in tensors), "nothing was moved"


def test_bad_arguments() -> None:
    models = [network(k) for k in range(2)]
    with pytest.raises(ValueError, match="randomness must be one of"):
        StackedModels(models, randomness="none")
    with pytest.raises(ValueError, match="chunk_size must be a positive number of models or None, got 0"):
        StackedModels(models, chunk_size=0)
    stacked = StackedModels(models)
    with pytest.raises(ValueError, match="one dictionary for each of the 2 models, got 3"):
        stacked.param_groups([{}] * 3)
    with pytest.raises(ValueError, match="l1 must be >= 0, got -1"):
        stacked.param_groups([{}, {"l1": -1.0}])
    x, y = batches(1)[0]
    with pytest.raises(ValueError, match=r"shape \(2, batch\)"):
        stacked.losses(cross_entropy, x, y, weights=torch.ones(3, 16))
    with pytest.raises(ValueError, match='reduction="none"'):
        stacked.losses(cross_entropy, x, y, weights=torch.ones(2, 16))
    with pytest.raises(ValueError, match="15 samples in each row, the criterion has returned 16"):
        stacked.losses(nn.CrossEntropyLoss(reduction="none"), x, y, weights=torch.ones(2, 15))
    with pytest.raises(ValueError, match="in_dims must be None, a number or a tuple of 2"):
        stacked.losses(cross_entropy, x, y, in_dims=(0, 0, 0))
    with pytest.raises(ValueError, match="max_norm must be >= 0"):
        stacked.clip_grad_norm_(-1.0)


@pytest.mark.parametrize(
    "move",
    [
        lambda stacked: stacked.models[1].float(),
        lambda stacked: stacked.models[1].load_state_dict(network(5).state_dict(), assign=True),
        lambda stacked: StackedModels(stacked.models),
    ],
)
def test_models_that_have_been_moved_are_noticed(move: Callable[[StackedModels], Any]) -> None:
    stacked = StackedModels([network(k) for k in range(2)])
    move(stacked)
    with pytest.raises(RuntimeError, match="make a new StackedModels"):
        stacked(batches(1)[0][0])
    with pytest.raises(RuntimeError, match="make a new StackedModels"):
        copy.deepcopy(StackedModels([network(k) for k in range(2)]))(batches(1)[0][0])


def test_gradients_beside_the_models_own_are_noticed() -> None:
    stacked = StackedModels([network(k) for k in range(2)])
    x, y = batches(1)[0]
    with pytest.warns(UserWarning, match="create_graph"), pytest.raises(RuntimeError, match="create_graph=True"):
        stacked.losses(cross_entropy, x, y).sum().backward(create_graph=True)


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    stacked = StackedModels([network(k) for k in range(2)])
    optimizer = optim.SGD(stacked.param_groups([{}] * 2), lr=0.1)
    x, y = batches(1)[0]
    stacked.losses(cross_entropy, x, y).sum().backward()
    late = stacked.losses(cross_entropy, x, y).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()
