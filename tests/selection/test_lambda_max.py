"""Where a path starts: the smallest strength that makes all weights zero, against closed forms and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from sklearn.linear_model import LassoCV
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from regkernels.selection import lambda_grid, lambda_max
from tests.selection.common import LINEAR, LOGISTIC, column, half_mse, linear_model
from tests.support import problems

ROWS, COLUMNS = LINEAR.features.shape
CLASSES = (LINEAR.targets.argsort().argsort() * 3) // ROWS  # three of equal size


def by_hand(problem: problems.Problem, intercept: bool) -> float:
    """max |X^T r| / n; the intercept alone fits the mean, and the log-odds of the mean."""
    start = problem.targets.mean() if intercept else torch.tensor(0.5 if problem.logistic else 0.0)
    return (problem.features.T @ (problem.targets - start)).abs().max().item() / ROWS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("problem", [LINEAR, LOGISTIC], ids=["linear", "logistic"])
def test_is_the_closed_form(problem: problems.Problem, intercept: bool, dtype: torch.dtype) -> None:
    loss = binary_cross_entropy_with_logits if problem.logistic else half_mse
    model = linear_model(bias=intercept).to(dtype)
    found = lambda_max(model, loss, (problem.features, column(problem.targets)))
    assert found == pytest.approx(by_hand(problem, intercept), rel=1e-12)


def test_of_several_classes_and_in_batches_of_unequal_size() -> None:
    """At zero weights the biases give each class its share: the gradient is X^T (share - indicator) / n."""
    indicators = nn.functional.one_hot(CLASSES, 3).double()
    gradient = LINEAR.features.T @ (indicators.mean(0) - indicators) / ROWS
    batches = list(zip(LINEAR.features.split(17), CLASSES.split(17), strict=True))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(LINEAR.features, CLASSES), batch_size=17, shuffle=True
    )
    for data in ((LINEAR.features, CLASSES), batches, loader):
        assert lambda_max(linear_model(3), cross_entropy, data) == pytest.approx(gradient.abs().max().item(), rel=1e-9)
        rows = lambda_max(linear_model(3), cross_entropy, data, penalty="group_l1", dim=0)
        assert rows == pytest.approx(gradient.norm(dim=0).max().item() / COLUMNS**0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("groups", "norm"),
    [
        ({"dim": 1}, lambda g: g.norm(dim=1).max() / 3**0.5),
        ({"dim": 1, "weight": "ones"}, lambda g: g.norm(dim=1).max()),
        ({"dim": 1, "size": 4}, lambda g: g.reshape(3, 12).norm(dim=1).max() / 12**0.5),
        ({"dim": "tensor"}, lambda g: g.norm() / 36**0.5),
    ],
)
def test_of_groups(groups: dict[str, Any], norm: Callable[[Tensor], Tensor]) -> None:
    model = linear_model(3, bias=False)
    gradient = LINEAR.features.T @ (1 / 3 - nn.functional.one_hot(CLASSES, 3).double()) / ROWS
    found = lambda_max(model, cross_entropy, (LINEAR.features, CLASSES), penalty="group_l1", l1_ratio=0.5, **groups)
    assert found == pytest.approx(2 * norm(gradient).item(), rel=1e-12)


def test_the_model_and_the_random_state_are_as_before() -> None:
    model = linear_model()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    lambda_max(model, half_mse, (LINEAR.features, column(LINEAR.targets)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
def test_equal_labels_need_no_weights(value: float) -> None:
    targets = torch.full_like(column(LINEAR.targets), value)
    assert lambda_max(linear_model(), half_mse, (LINEAR.features, targets)) == 0
    if value <= 1:
        assert lambda_max(linear_model(), binary_cross_entropy_with_logits, (LINEAR.features, targets)) == 0
        without = lambda_max(linear_model(bias=False), binary_cross_entropy_with_logits, (LINEAR.features, targets))
        assert without == pytest.approx(LINEAR.features.mean(0).abs().max().item() / 2, rel=1e-12)


def test_badly_scaled_inputs_and_targets() -> None:
    features, targets = 1e3 + 1e-2 * LINEAR.features, 1e3 + LINEAR.targets
    centred = features - features.mean(0)
    expected = (centred.T @ (targets - targets.mean())).abs().max().item() / ROWS
    assert lambda_max(linear_model(), half_mse, (features, column(targets))) == pytest.approx(expected, rel=1e-6)


def test_what_scikit_learn_starts_from_and_tries() -> None:
    lasso = LassoCV(alphas=7, eps=1e-2, cv=2).fit(LINEAR.features.numpy(), LINEAR.targets.numpy())
    maximum = lambda_max(linear_model(), half_mse, (LINEAR.features, column(LINEAR.targets)))
    numpy.testing.assert_allclose(lambda_grid(maximum, 7, 1e-2), lasso.alphas_, rtol=1e-12)
    assert lambda_grid(maximum, 7)[0] == maximum and lambda_grid(2.0, 1).tolist() == [2.0]
    assert lambda_grid(0.0, 3).tolist() == [0, 0, 0]


class Spread(nn.Module):
    """A convolution is linear, too; its weights have three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, COLUMNS).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, None])[:, :, 0]


def test_any_linear_model_will_do() -> None:
    labels = LOGISTIC.targets.long()
    share = labels.double().mean()
    gradient = LOGISTIC.features.T @ (share - labels.double()) / ROWS
    found = lambda_max(Spread(), cross_entropy, (LOGISTIC.features, labels))
    assert found == pytest.approx(gradient.abs().max().item(), rel=1e-10)


NETWORK = nn.Sequential(nn.Linear(COLUMNS, 4), nn.ReLU(), nn.Linear(4, 1))
SIGMOID = nn.Sequential(nn.Linear(COLUMNS, 1), nn.Sigmoid())
X, Y = LINEAR.features, column(LINEAR.targets)
NAN, INF = float("nan"), float("inf")
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": NETWORK}, ValueError, r'not linear in its penalised weights.*saddle.*direction="increasing"'),
    (
        {"model": SIGMOID, "loss": nn.functional.binary_cross_entropy, "data": (X, (Y > 0).double())},
        ValueError,
        "sigmoid",
    ),
    ({"model": nn.Sequential(nn.Dropout(0.5), nn.Linear(COLUMNS, 1))}, ValueError, r"dropout.*model\.eval"),
    ({"model": nn.BatchNorm1d(COLUMNS), "data": (X, X)}, ValueError, "no penalised parameter.*regularise="),
    ({"model": nn.Flatten()}, ValueError, "model has no parameters.*such as nn.Linear"),
    ({"model": nn.LazyLinear(1)}, ValueError, "weight of the model has no shape yet.*forward pass"),
    ({"model": [nn.Linear(COLUMNS, 1)]}, TypeError, r"model must be a torch\.nn\.Module, got list"),
    ({"loss": "mse"}, TypeError, "loss must be a function of outputs and targets, got 'mse'"),
    ({"loss": nn.MSELoss(reduction="none")}, ValueError, r"loss must return one number.*got shape \(60, 1\)"),
    ({"data": X}, TypeError, r"data must be a pair of tensors.*got a Tensor"),
    ({"data": (X, Y, Y)}, TypeError, r"data\[0\] must be a pair"),
    ({"data": iter([(X, Y)])}, TypeError, "data is an iterator, which is empty after the first pass"),
    ({"data": []}, ValueError, "data is empty"),
    ({"data": (X[:0], Y[:0])}, ValueError, "data is empty"),
    ({"data": (X, Y[:-1])}, ValueError, r"inputs of shape \(60, 12\) and targets of shape \(59, 1\)"),
    ({"data": (X, Y[:, 0])}, ValueError, r"\(60, 1\) and the targets \(60,\).*broadcast.*y\[:, None\]"),
    ({"data": (X[:, 1:], Y)}, ValueError, "model, loss and data do not go together"),
    ({"data": (X, Y * NAN)}, ValueError, "data has NaN or infinite targets"),
    ({"data": [(X, Y), (X * INF, Y)]}, ValueError, r"data\[1\] has NaN or infinite inputs"),
    ({"l1_ratio": 0.0}, ValueError, r"l1_ratio must be in \(0, 1\], got 0"),
    ({"l1_ratio": NAN}, ValueError, "l1_ratio must be finite"),
    ({"penalty": "l2"}, ValueError, "penalty must be one of 'l1', 'group_l1', got 'l2'"),
    ({"penalty": "group_l1", "dim": 2}, ValueError, r"dim=2 does not exist in a penalised parameter"),
    ({"penalty": "group_l1", "dim": "rows"}, TypeError, "dim must be .*got 'rows'"),
    ({"penalty": "group_l1", "dim": 1, "size": 5}, ValueError, "size=5 does not divide the 12 of dim=1"),
    ({"penalty": "group_l1", "size": 0}, ValueError, "size must be at least 1, got 0"),
    ({"penalty": "group_l1", "weight": "root"}, ValueError, "weight must be one of 'sqrt_size', 'ones', got 'root'"),
]


@pytest.mark.parametrize(("changed", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"model": linear_model(), "loss": half_mse, "data": (X, Y), **changed}
    with pytest.raises(error, match=text):
        lambda_max(**arguments)


def test_a_loss_without_a_minimum() -> None:
    with pytest.raises(RuntimeError, match="the unpenalised parameters could not be fitted: their gradient is still"):
        lambda_max(linear_model(), lambda output, target: (output * target.abs()).mean(), (X, Y))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1.0,), ValueError, "maximum must be >= 0, got -1"),
        ((NAN,), ValueError, "maximum must be finite"),
        ((1.0, 0), ValueError, "n_lambdas must be a whole number >= 1, got 0"),
        ((1.0, 2.5), ValueError, "n_lambdas must be a whole number >= 1, got 2.5"),
        ((1.0, 5, 1.0), ValueError, r"lambda_min_ratio must be in \(0, 1\), got 1.0"),
        ((1.0, 5, 0.0), ValueError, r"lambda_min_ratio must be in \(0, 1\), got 0.0"),
    ],
)
def test_a_bad_grid(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        lambda_grid(*arguments)
