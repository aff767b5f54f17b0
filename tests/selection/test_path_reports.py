"""What paths say: warnings, errors, pictures and the progress bar."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import regkernels
from regkernels.selection import regularization_path
from tests.selection.common import MAXIMUM, X, Y, half_mse, linear_model, path


@pytest.mark.parametrize("lambdas", [None, [1.0, 0.5, 0.0]])
def test_equal_labels_give_zeros_and_a_warning(lambdas: list[float] | None) -> None:
    with pytest.warns(RuntimeWarning, match="all weights of the path are zero.*Are all labels equal"):
        ours = regularization_path(
            linear_model(), binary_cross_entropy_with_logits, (X, torch.ones_like(Y)), lambdas, n_lambdas=3
        )
    assert ours.weights.shape == (3, 12) and ours.weights.count_nonzero() == 0 and ours.converged.all()
    assert ours.lambdas.tolist() == (lambdas or [0, 0, 0])


@pytest.mark.parametrize("optimizer", [None, lambda groups: regkernels.optim.SGD(groups, lr=0.01)])
def test_a_point_that_did_not_converge_is_marked_and_warned_of(optimizer: Any) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:  # takes Newton's method more than a step
        return (output - target).cosh().log().mean()

    with pytest.warns(RuntimeWarning, match=r"1 of 2 strengths did not converge: at lambda = 0.001 .* after 1 steps"):
        ours = regularization_path(linear_model(), loss, (X, Y), [2 * MAXIMUM, 1e-3], max_steps=1, optimizer=optimizer)
    assert ours.converged.tolist() == [True, False] and ours.steps.tolist() == [0, 1]
    assert ours.violations[1] > 1e-3


def test_a_decay_that_is_not_the_objectives_is_seen() -> None:
    with pytest.warns(RuntimeWarning, match="did not converge"):
        ours = regularization_path(
            linear_model(),
            half_mse,
            (X, Y),
            [0.2],
            l1_ratio=0.5,
            max_steps=2000,
            optimizer=lambda groups: regkernels.optim.AdamW(groups, lr=0.01),  # decoupled by default
        )
    assert ours.violations[0] > 1e-3


def test_a_loss_that_is_not_finite() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean() + (1 - (output - target).square().mean()).sqrt()

    with pytest.raises((RuntimeError, ValueError), match="is not finite"):
        regularization_path(linear_model(), loss, (X, Y), [0.1])


NETWORK, NAN = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 1)).double(), float("nan")
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lambdas": []}, ValueError, "lambdas is empty"),
    ({"lambdas": [0.1, -0.2]}, ValueError, r"lambdas\[1\] must be >= 0, got -0.2"),
    (
        {"lambdas": [0.1, 0.3, 0.2]},
        ValueError,
        r"visited, which is decreasing; got lambdas\[0\] = 0.1, where 0.3 should be: pass sorted\(lambdas, reverse=True\)",
    ),
    (
        {"lambdas": [0.1, 0.3, 0.2], "direction": "increasing"},
        ValueError,
        r"which is increasing; got lambdas\[1\] = 0.3, where 0.2 should be: pass sorted\(lambdas\)",
    ),
    ({"lambdas": [NAN]}, ValueError, r"lambdas\[0\] must be finite, got nan"),
    ({"lambdas": ["a"]}, TypeError, r"lambdas\[0\] must be a number, got 'a'"),
    ({"lambdas": 0.1}, TypeError, "lambdas must be a sequence of numbers, got 0.1"),
    ({"lambdas": torch.tensor(0.1)}, TypeError, "lambdas must be a sequence of numbers"),
    ({"direction": "up"}, ValueError, "direction must be one of 'decreasing', 'increasing', got 'up'"),
    ({"lambdas": None, "direction": "increasing"}, ValueError, "lambdas must be given with direction='increasing'"),
    ({"lambdas": None, "n_lambdas": 0}, ValueError, "n_lambdas must be a whole number >= 1, got 0"),
    ({"model": NETWORK}, ValueError, 'not linear.*direction="increasing"'),
    ({"model": nn.Identity()}, ValueError, "model has no parameters"),
    ({"model": 3}, TypeError, "model must be a torch.nn.Module or a function that makes one, got a int"),
    ({"model": lambda: 3}, TypeError, "model must be a torch.nn.Module, got int"),
    ({"regularise": lambda name, p: False}, ValueError, "no penalised parameter"),
    ({"data": (X, Y[1:])}, ValueError, "both must have one row per example"),
    ({"data": (X.float(), Y)}, ValueError, "model, loss and data do not go together"),
    (
        {"data": (X.round().long(), Y)},
        ValueError,
        r"do not go together: .*\(inputs are torch.int64: pass inputs.to\(torch.float64\)\)",
    ),
    ({"validation": (X, Y[1:])}, ValueError, "validation has inputs of shape"),
    ({"validation": (X, Y[:, 0])}, ValueError, "model, loss and validation do not go together: .*reshape the targets"),
    ({"validation": (X, Y), "score": lambda o, t: o - t}, ValueError, "score must return one number, .* got shape"),
    ({"score": half_mse}, ValueError, "score needs data that is not trained on"),
    ({"key": "l2"}, ValueError, "key must be one of 'l1', .* got 'l2'"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0, got -1"),
    ({"l1_ratio": 0}, ValueError, r"l1_ratio must be in \(0, 1\], got 0"),
    ({"tol": -1}, ValueError, "tol must be a number >= 0, got -1"),
    ({"tol": NAN}, ValueError, "tol must be a number >= 0, got nan"),
    ({"max_steps": 0}, ValueError, "max_steps must be a whole number >= 1, got 0"),
    ({"spped": 3}, ValueError, "'spped' is not known; keys of a param group are box, group_dim"),
    ({"n_lambda": 3}, ValueError, "'n_lambda' is not known; did you mean n_lambdas?"),
    ({"learning_rate": 3}, ValueError, "'learning_rate' is not known; did you mean lr?"),
    (
        {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)},
        ValueError,
        "key 'l1' is none of a param group of torch.optim.sgd.SGD; those of regkernels.optim know l1",
    ),
    (
        {"mometum": 0.5, "optimizer": lambda groups: regkernels.optim.SGD(groups, lr=0.1)},
        ValueError,
        "'mometum' is not known; did you mean momentum?",
    ),
    ({"lr": 0.1}, ValueError, "lr=0.1 is of the optimizer: pass optimizer=lambda groups"),
    ({"mcp_gamma": 2.0}, ValueError, "the path has mcp_gamma=2.0, which says something of mcp, and the penalty is l1"),
    (
        {"group_dim": 1},
        ValueError,
        "the path has group_dim=1, which says something of group_l1 or max_norm or unit_norm, and the penalty is l1",
    ),
    (
        {"key": "mcp", "l1_weights": [X]},
        ValueError,
        "the path has l1_weights, which says something of l1, and the penalty is mcp",
    ),
    ({"loss": nn.MSELoss}, TypeError, r"got the class MSELoss: pass an instance, MSELoss\(\)"),
    (
        {"loss": nn.MSELoss(reduction="sum")},
        ValueError,
        'a mean over the samples, got one that doubles .* reduction="mean"',
    ),
    (
        {"loss": lambda output, target: (output - target).square().sum() / 300},
        ValueError,
        r"or divide by len\(targets\)",
    ),
    ({"loss": nn.CrossEntropyLoss()}, ValueError, "an output for each class, and the model has one: take binary_cross"),
    (
        {"loss": nn.CrossEntropyLoss(), "model": linear_model(2), "data": (X, (Y[:, 0] > 0).double())},
        ValueError,
        r"whole numbers, and the targets are torch.float64: pass y.long\(\)",
    ),
    ({"validation": (X, Y), "score": "r2"}, TypeError, "score must be a function of the model's output .* got 'r2'"),
    ({"key": "mcp", "mcp_gamma": -1.0}, ValueError, "mcp_gamma must be > 0, got -1.0"),
    ({"key": "mcp", "l1": 0.1}, ValueError, "l1 and mcp cannot be combined"),
    ({"lambdas": None, "l1_weights": [X]}, ValueError, "lambdas must be given"),
    ({"l1_weights": [X]}, ValueError, "l1_weights"),
    ({"l1_weights": {"bias": Y[0]}}, ValueError, "l1_weights names 'bias', which is no regularised parameter"),
    ({"lambdas": None, "key": "l0"}, ValueError, "lambdas must be given with direction='decreasing', key='l0'"),
    ({"key": "group_l1", "group_size": 5, "group_dim": 1}, ValueError, "size=5 does not divide"),
    ({"l1": 0.1}, ValueError, "l1 cannot be an option"),
    ({"optimizer": "adam"}, TypeError, "optimizer must be a function of param groups, got a str"),
    ({"optimizer": lambda groups: None}, TypeError, "returns an optimizer, got a NoneType"),
]


@pytest.mark.parametrize(("changed", "error", "text"), BAD, ids=[text for _, _, text in BAD])
def test_bad_input(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"model": linear_model(), "loss": half_mse, "data": (X, Y), "lambdas": [0.1], **changed}
    with pytest.raises(error, match=text):
        regularization_path(**arguments)


def test_strengths_that_a_path_does_not_have() -> None:
    ours = path([0.2, 0.1])
    assert torch.equal(ours.load(linear_model(), -1).weight, ours.load(linear_model(), 1).weight)
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"index must be from -2 to 1, as the path has 2 strengths, got {index}"):
            ours.load(linear_model(), index)


def test_the_plot_shows_the_weights_and_the_scores() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ours = path(n_lambdas=5, validation=(X, Y))
    axes = ours.plot(pyplot.figure().subplots())
    lines = [line.get_ydata() for line in axes.get_lines()[:12]]
    numpy.testing.assert_array_equal(numpy.stack(lines, 1), ours.weights.numpy())
    assert axes.get_xscale() == "log"
    _, scale = axes.figure.axes
    numpy.testing.assert_array_equal(scale.get_lines()[0].get_ydata(), ours.scores)
    axes = path([1.0, 0.1, 0.0]).plot(pyplot.figure().subplots())
    assert axes.get_xscale() == "symlog" and len(axes.figure.axes) == 1
    pyplot.close("all")


def test_the_plot_of_many_weights_counts_them() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    wide = regularization_path(nn.Linear(301, 1), half_mse, (torch.randn(4, 301), torch.randn(4, 1)), n_lambdas=2)
    axes = wide.plot()
    assert axes.get_lines()[0].get_ydata().tolist() == wide.nonzeros.tolist()
    pyplot.close("all")


def test_a_progress_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path([0.2, 0.1], progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    path([0.2, 0.1], progress=True)
    assert "lambda = 0.1" in capsys.readouterr().err
    path([0.2, 0.1])
    assert "lambda" not in capsys.readouterr().err  # not a long one


def test_what_a_path_says_of_itself_fits_a_line() -> None:
    ours = path([2 * MAXIMUM, MAXIMUM / 2], validation=(X, Y))
    zero, nonzero, score = 0, int(ours.nonzeros[1]), f"{ours.scores[1]:.4g}"
    assert repr(ours) == (
        f"RegularizationPath(2 strengths from {2 * MAXIMUM:.4g} to {MAXIMUM / 2:.4g}; {zero} to {nonzero} of 12 weights nonzero; "
        f"2 converged; best score {score} at {MAXIMUM / 2:.4g}, index 1)"
    )


def test_a_score_that_is_not_a_number_is_the_worst() -> None:
    scores = iter([-1.0, float("nan"), float("-inf")])
    assert path([2.0, 1.0, 0.5], validation=(X, Y), score=lambda output, target: next(scores)).best == 0
    never = path([1.0, 0.5], validation=(X, Y), score=lambda output, target: NAN)
    assert never.best == 0 and "best score nan" in repr(never)
