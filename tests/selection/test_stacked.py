"""Models that are trained together end where each of them ends alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from regkernels import backends, optim
from regkernels.param_groups import param_groups
from regkernels.selection import StackedModels
from tests.selection.stacking import (
    CLOSE,
    OPTIMIZERS,
    ROWS,
    K,
    Tied,
    alone,
    assert_same,
    batches,
    convolution,
    network,
    together,
)


@pytest.mark.parametrize("build", [network, convolution])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_same_as_one_after_the_other(kind: str, build: Callable[[int], nn.Module]) -> None:
    make, options = OPTIMIZERS[kind]
    if build is convolution and make is not optim.SGD:
        options = {
            **options,
            "eps": 1e-3,
        }  # a bias before BatchNorm has gradients of rounding alone, which Adam scales up
    models = [build(k) for k in range(K)]
    expected = copy.deepcopy(models)
    for model, row in zip(expected, ROWS, strict=True):
        alone(model, make(param_groups(model, **row), **options), batches())
    stacked = StackedModels(models)
    together(stacked, make(stacked.param_groups(ROWS), **options), batches())
    for ours, theirs in zip(models, expected, strict=True):
        assert_same(ours, theirs)
    zeros = [sum(int((p == 0).sum()) for p in model.parameters()) for model in models]
    assert zeros[0] == 0 and zeros[-1] > 2


def test_the_same_bits_given_the_same_gradients() -> None:
    models = [network(k, torch.float32) for k in range(K)]
    expected = copy.deepcopy(models)
    stacked = StackedModels(models)
    optimizer = optim.AdamW(stacked.param_groups(ROWS))
    others = [optim.AdamW(param_groups(m, **row)) for m, row in zip(expected, ROWS, strict=True)]
    for x, y in batches(dtype=torch.float32):
        stacked.losses(cross_entropy, x, y).sum().backward()
        for ours, theirs, other in zip(models, expected, others, strict=True):
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                b.grad = a.grad.clone()
            other.step()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(models, expected, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)


def test_tied_parameters() -> None:
    models = [Tied() for _ in range(3)]
    expected = copy.deepcopy(models)
    rows = [{"l1": 0.03 * k} for k in range(3)]
    for model, row in zip(expected, rows, strict=True):
        alone(model, optim.AdamW(param_groups(model, **row), lr=0.01), batches())
    stacked = StackedModels(models)
    together(stacked, optim.AdamW(stacked.param_groups(rows), lr=0.01), batches())
    for ours, theirs in zip(models, expected, strict=True):
        assert ours.first.weight is ours.second.weight
        assert_same(ours, theirs)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_update_per_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, options = OPTIMIZERS[kind]
    stacked = StackedModels([network(k) for k in range(K)])
    optimizer = make(stacked.param_groups([{"l1": row["l1"]} for row in ROWS]), **options)
    backend = backends.backend_for(torch.device("cpu"))
    update, calls = backend.update, []
    monkeypatch.setattr(
        backend, "update", lambda batch, **with_sums: (calls.append(len(batch.rows)), update(batch, **with_sums))[1]
    )
    together(stacked, optimizer, batches(3))
    assert calls == [K + 1] * 3, "a call for each step, with a row for each model and one for what is not penalised"


def test_torch_optimizers_do_as_well() -> None:
    models = [network(k) for k in range(3)]
    expected = copy.deepcopy(models)
    for model in expected:
        alone(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), batches())  # type: ignore[arg-type]
    stacked = StackedModels(models)
    params = [param for model in models for param in model.parameters()]
    together(stacked, torch.optim.SGD(params, lr=0.1, momentum=0.9), batches())
    for ours, theirs in zip(models, expected, strict=True):
        assert_same(ours, theirs)


def test_weights_choose_the_rows_of_each_fold() -> None:
    """What is trained on the rows with a weight is what is trained on these rows alone."""
    x, y = batches(1)[0]
    weights = torch.ones(4, 16, dtype=torch.float64)
    for fold in range(3):
        weights[fold, fold::3] = 0
    weights[3] = torch.linspace(0, 1, 16)
    models = [network(k) for k in range(4)]
    expected = copy.deepcopy(models)
    stacked = StackedModels(models)
    optimizer = optim.Adam(stacked.param_groups([{"l1": 0.01}] * 4), lr=0.01)
    per_sample = nn.CrossEntropyLoss(reduction="none")
    for _ in range(20):
        losses = stacked.losses(per_sample, x, y, weights=weights)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for model, own in zip(expected, weights, strict=True):
        other = optim.Adam(param_groups(model, l1=0.01), lr=0.01)
        if own is weights[3] or not set(own.tolist()) <= {0.0, 1.0}:
            alone(model, other, [(x, y)] * 20, lambda out, y, w=own: (w * per_sample(out, y)).sum() / w.sum())
        else:
            alone(model, other, [(x[own > 0], y[own > 0])] * 20)
    for ours, theirs in zip(models, expected, strict=True):
        assert_same(ours, theirs)
    empty = torch.zeros(4, 16, dtype=torch.float64)
    assert stacked.losses(per_sample, x, y, weights=empty).tolist() == [0.0] * 4


def test_inputs_of_its_own_for_each_model() -> None:
    models = [network(k) for k in range(3)]
    stacked = StackedModels(models)
    x = torch.randn(3, 16, 6, dtype=torch.float64)
    y = torch.randn(3, 16, 3, dtype=torch.float64)
    expected = torch.stack([mse_loss(model(a), b) for model, a, b in zip(models, x, y, strict=True)])
    torch.testing.assert_close(stacked.losses(mse_loss, x, y, in_dims=0), expected, rtol=CLOSE, atol=0)
    expected = torch.stack([mse_loss(model(a), y[0]) for model, a in zip(models, x, strict=True)])
    torch.testing.assert_close(stacked.losses(mse_loss, x, y[0], in_dims=(0, None)), expected, rtol=CLOSE, atol=0)
    outputs = torch.stack([model(a) for model, a in zip(models, x, strict=True)])
    torch.testing.assert_close(stacked(x, in_dims=0), outputs, rtol=CLOSE, atol=CLOSE)


def test_predict_evaluates_and_leaves_the_mode() -> None:
    models = [convolution(k) for k in range(3)]
    expected = copy.deepcopy(models)
    stacked = StackedModels(models, chunk_size=2)
    x, _ = batches(1)[0]
    found = stacked.predict(x)
    assert found.shape == (3, 16, 3) and not found.requires_grad
    for model, own, ours in zip(expected, found, models, strict=True):
        torch.testing.assert_close(own, model.eval()(x), rtol=CLOSE, atol=CLOSE)
        assert ours.training
        assert torch.equal(ours[2].running_mean, model[2].running_mean)
    assert not stacked.eval().models[2][2].training and stacked.train().models[2][2].training


def test_dropout_differs_between_models_unless_asked() -> None:
    x = torch.ones(1, 200)
    for randomness, same in (("different", False), ("same", True)):
        stacked = StackedModels(
            [nn.Sequential(nn.Identity(), nn.Dropout(), Scale()) for _ in range(2)], randomness=randomness
        )
        first, second = stacked(x)
        assert torch.equal(first, second) is same


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_each_model_is_clipped_by_its_own_norm() -> None:
    models = [network(k) for k in range(3)]
    expected = copy.deepcopy(models)
    stacked = StackedModels(models)
    x, y = batches(1)[0]
    scales = torch.tensor([1.0, 10.0, 0.01], dtype=torch.float64)
    (stacked.losses(cross_entropy, x, y) * scales).sum().backward()
    norms = stacked.clip_grad_norm_(0.5)
    for model, scale, norm in zip(expected, scales, norms, strict=True):
        (cross_entropy(model(x), y) * float(scale)).backward()
        theirs = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        torch.testing.assert_close(norm, theirs, rtol=CLOSE, atol=0)
    for a, b in zip(
        [p for m in models for p in m.parameters()], [p for m in expected for p in m.parameters()], strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, rtol=CLOSE, atol=1e-15)


def test_a_checkpoint_continues() -> None:
    """The models' and the optimizer's own state dicts are the checkpoint."""
    models = [network(k) for k in range(3)]
    stacked = StackedModels(models)
    optimizer = optim.AdamW(stacked.param_groups(ROWS[:3]))
    together(stacked, optimizer, batches(10))
    saved = pickle.loads(pickle.dumps(([model.state_dict() for model in models], optimizer.state_dict())))
    together(stacked, optimizer, batches(10))
    others = [network(k + 10) for k in range(3)]
    again = StackedModels(others)
    other = optim.AdamW(again.param_groups([{**row, "l1": 9.0} for row in ROWS[:3]]))
    for model, state in zip(others, saved[0], strict=True):
        model.load_state_dict(state)
    other.load_state_dict(saved[1])
    together(again, other, batches(10))
    for a, b in zip(models, others, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_saved_model_is_no_larger_than_one() -> None:
    models = [network(k) for k in range(20)]
    StackedModels(models)
    assert len(pickle.dumps(models[3].state_dict())) < 2 * len(pickle.dumps(network(3).state_dict()))


def test_gradients_that_are_reset_by_other_means() -> None:
    """``module.zero_grad()`` sets gradients to None, of one model or of all; the next backward counts from zero."""
    models = [network(k) for k in range(3)]
    stacked = StackedModels(models)
    x, y = batches(1)[0]
    stacked.losses(cross_entropy, x, y).sum().backward()
    first = [[p.grad.clone() for p in model.parameters()] for model in models]
    for reset in ([1], [0, 1, 2]):
        for index in reset:
            models[index].zero_grad()
        stacked.losses(cross_entropy, x, y).sum().backward()
        for index, model in enumerate(models):
            factor = 1 if index in reset else 2
            for p, grad in zip(model.parameters(), first[index], strict=True):
                torch.testing.assert_close(p.grad, factor * grad, rtol=CLOSE, atol=1e-15)
    assert all((param.grad == 0).all() for model in models for param in model.parameters()) is False
    stacked.zero_grad()
    assert all((param.grad == 0).all() for model in models for param in model.parameters())


def test_gradients_that_are_there_or_put_there_are_added_to() -> None:
    models = [network(k) for k in range(2)]
    x, y = batches(1)[0]
    for model in models:
        model[0].weight.grad = torch.ones(8, 6, dtype=torch.float64)
    stacked = StackedModels(models)
    for value in (1.0, 5.0):
        stacked.losses(cross_entropy, x, y).sum().backward()
        for k, model in enumerate(models):
            alone = network(k)
            cross_entropy(alone(x), y).backward()
            torch.testing.assert_close(model[0].weight.grad, alone[0].weight.grad + value, rtol=CLOSE, atol=CLOSE)
            model.zero_grad()
            model[0].weight.grad = torch.full((8, 6), 5.0, dtype=torch.float64)
