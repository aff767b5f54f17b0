"""StrengthCV keeps scikit-learn's contract as far as a network can, and says what is wrong before it trains."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import _get_check_estimator_ids, estimator_checks_generator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from regkernels.selection import StrengthCV
from tests.selection.test_strength_cv import CLASSES, GROUPS, NUMBERS, TRAINING, X, network

ESTIMATORS = [
    StrengthCV(nn.LazyLinear(1), loss, [1e-3], cv=2, lr=0.3, epochs=60, batch_size=None, random_state=0)
    for loss in (nn.MSELoss(reduction="none"), nn.BCEWithLogitsLoss(reduction="none"))
]
NOT_KEPT = {
    "check_sample_weight_equivalence": "folds are dealt by rows: a row that is there twice may be in two, one of weight two is not",
    "check_regressor_multioutput": "how many outputs there are is said by the module, which is made for one here",
}
ABOUT_OTHERS = (
    "check_sample_weights_pandas_series",  # these two skip themselves where there is no pandas
    "data_not_an_array",
    "check_array_api_input",  # and this one where scikit-learn's array interface is not switched on
)


def contract() -> Iterator[Any]:
    for estimator in ESTIMATORS:
        for one, check in estimator_checks_generator(estimator):
            name = _get_check_estimator_ids(check)
            if not any(part in name for part in ABOUT_OTHERS):
                reasons = [reason for part, reason in NOT_KEPT.items() if part in name]
                marks = [pytest.mark.xfail(reason=reasons[0])] if reasons else []
                yield pytest.param(one, check, id=f"{one.loss}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), list(contract()))
def test_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_cross_entropy_classifies_and_others_regress() -> None:
    several = StrengthCV(network, cross_entropy, [1.0])
    two = StrengthCV(network, functools.partial(binary_cross_entropy_with_logits, reduction="none"), [1.0])
    numbers = StrengthCV(network, mse_loss, [1.0])
    assert is_classifier(several) and is_classifier(two) and is_regressor(numbers)
    assert [each.__sklearn_tags__().classifier_tags.multi_class for each in (several, two)] == [True, False]


def test_in_a_pipeline_as_a_clone_and_after_pickling() -> None:
    strength_cv = StrengthCV(nn.Linear(6, 3), cross_entropy, [1e-3, 1e-2], cv=3, random_state=0, **TRAINING)
    both = make_pipeline(StandardScaler(), strength_cv).fit(X, CLASSES, strengthcv__groups=GROUPS)
    again = clone(both).fit(X, CLASSES)
    numpy.testing.assert_array_equal(both.predict_proba(X), again.predict_proba(X))
    other = pickle.loads(pickle.dumps(both))
    numpy.testing.assert_array_equal(both.predict_proba(X), other.predict_proba(X))
    assert not hasattr(strength_cv.set_params(rule="1se"), "module_") or strength_cv.rule == "1se"


def test_one_standard_error_takes_the_largest_strength_within_it() -> None:
    strengths = numpy.geomspace(1e-3, 0.1, 15)
    options: dict[str, Any] = {"random_state": 0, "lr": 0.02, "epochs": 30, "batch_size": 16}
    sparser = StrengthCV(network, cross_entropy, strengths, rule="1se", **options).fit(X, CLASSES)
    means = sparser.cv_results_["mean_test_score"]
    best = means.argmax()
    within = means >= means[best] - sparser.cv_results_["std_test_score"][best] / (5 - 1) ** 0.5
    assert sparser.best_strength_ == strengths[within].max() > strengths[best]
    assert sparser.best_score_ == means[sparser.best_index_]


def test_the_plot_shows_each_strength(tmp_path: Any) -> None:
    pairs = [(0.0, 0.0), (0.1, 0.0), (0.01, 0.5), (0.0, 0.5)]
    found = StrengthCV(network, cross_entropy, pairs, key=("l1", "weight_decay"), cv=3, random_state=0, **TRAINING).fit(
        X, CLASSES
    )
    axes = found.plot()
    lines = [bars.lines[0] for bars in axes.containers]
    drawn = {(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)}
    assert drawn == set(zip([l1 for l1, _ in pairs], found.cv_results_["mean_test_score"], strict=True))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weight_decay 0", "weight_decay 0.5"]
    axes.figure.savefig(tmp_path / "strengths.png")


def test_a_bar_shows_the_epochs_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    def run(verbose: bool) -> str:
        StrengthCV(network, cross_entropy, [0.1, 1.0], random_state=0, verbose=verbose, **TRAINING).fit(X, CLASSES)
        said = capsys.readouterr()
        assert not said.out
        return said.err

    assert "2 strengths x 5 folds" in run(True)
    assert not run(False)


# --- what is refused ---


class Forgetful(nn.Module):
    """Puts a new tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 1
        return self.layer(x)


class Branching(nn.Module):
    """Looks at values of a tensor, which stand for those of several models."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(x)
        return outputs if outputs.sum() > 0 else 2 * outputs


def with_sparse_buffer() -> nn.Module:
    module = network()
    module.register_buffer("mask", torch.eye(3).to_sparse())
    return module


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"strengths": []}, ValueError, "strengths is empty: pass one or more"),
    ({"strengths": 0.1}, TypeError, r"strengths must be a list of numbers, got 0.1; for one strength pass \[0.1\]"),
    ({"strengths": [0.1, -1.0]}, ValueError, r"strengths\[1\] must be >= 0 and finite, got -1.0"),
    ({"strengths": [float("nan")]}, ValueError, r"strengths\[0\] must be >= 0 and finite, got nan"),
    ({"strengths": ["strong"]}, TypeError, r"strengths\[0\] must be a number >= 0, got 'strong'"),
    ({"strengths": [0.1, 0.2, 0.1]}, ValueError, r"strengths\[2\] is there twice, got 0.1; pass each once"),
    (
        {"key": ("l1", "weight_decay")},
        TypeError,
        r"strengths\[0\] must have a number for each of the keys l1, weight_decay",
    ),
    ({"key": 3}, TypeError, "key must be a param-group key such as 'l1', or a tuple"),
    ({"key": "l7"}, ValueError, "key 'l7' is none of a param group of regkernels.optim.adamw.AdamW"),
    ({"optimizer": torch.optim.AdamW}, ValueError, "key 'l1' is none of a param group of torch.optim.adamw.AdamW"),
    ({"optimizer": lambda groups, lr: None}, TypeError, "optimizer must make an optimizer .* got a NoneType"),
    ({"options": {"l1": 1.0}}, ValueError, "options have 'l1', which is the key that strengths are tried of"),
    ({"options": ["l1"]}, TypeError, "options must be a dictionary"),
    ({"rule": "max"}, ValueError, "rule must be one of 'min', '1se', got 'max'"),
    ({"epochs": 0}, ValueError, "epochs must be a whole number >= 1, got 0"),
    ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number >= 1 or None, got 2.5"),
    ({"patience": 0}, ValueError, "patience must be a whole number >= 1 or None, got 0"),
    ({"lr": -1.0}, ValueError, "lr must be >= 0, got -1.0"),
    (
        {"module": nn.ReLU()},
        ValueError,
        "module has no trainable parameter .* got a ReLU: there is nothing to penalise",
    ),
    (
        {"module": "network"},
        TypeError,
        "module must be a torch.nn.Module, or a function without arguments .* got 'network'",
    ),
    ({"module": lambda: 3}, TypeError, "module must be a torch.nn.Module, .* got a int from it"),
    (
        {"module": nn.Linear(6, 4)},
        ValueError,
        r"module must have an output for each of the 3 classes of y, got the shape \(4,\)",
    ),
    ({"module": Forgetful()}, ValueError, "module replaces its buffer 'seen' in forward.* change it in place"),
    ({"module": Branching()}, ValueError, "cannot be computed for several models at once.* GridSearchCV over a skorch"),
    (
        {"module": with_sparse_buffer},
        ValueError,
        "module has the buffer 'mask' of the layout torch.sparse_coo.* make it dense",
    ),
    ({"loss": nn.CrossEntropyLoss}, TypeError, r"loss must be a function .* pass an instance, CrossEntropyLoss\(\)"),
    (
        {"loss": nn.CrossEntropyLoss(reduction="sum")},
        ValueError,
        'loss must be a mean .* pass reduction="mean" or "none"',
    ),
    ({"loss": mse_loss}, ValueError, r"module must have outputs like y, of the shape \(\) per row, got \(3,\)"),
    ({"loss": binary_cross_entropy_with_logits}, ValueError, "is for two classes, y has 3: pass cross_entropy"),
    (
        {"cv": KFold(2)},
        ValueError,
        "training part of fold 0 has no sample of class 0, of which there are 19; stratify the folds .* or take fewer",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    given: dict[str, Any] = {"module": nn.Linear(6, 3), "loss": cross_entropy, "strengths": [1e-3], "cv": 3, **TRAINING}
    module = arguments.get("module", given["module"])
    before = copy.deepcopy(module.state_dict()) if isinstance(module, nn.Module) else {}
    order = numpy.argsort(CLASSES, kind="stable")  # folds in order lack a class
    estimator = StrengthCV(**{**given, **arguments})
    with pytest.raises(error, match=text):
        estimator.fit(X[order], CLASSES[order])
    assert not any(hasattr(estimator, name) for name in ("module_", "best_strength_", "classes_", "cv_results_"))
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())


def test_bad_data() -> None:
    def fit(y: Any, loss: Callable[..., Any] = cross_entropy, **options: Any) -> None:
        StrengthCV(network, loss, [1e-3], cv=options.pop("cv", 3), **TRAINING).fit(X, y, **options)

    with pytest.raises(ValueError, match="y must have two classes or more, got one class: 7"):
        fit(numpy.full(62, 7))
    with pytest.raises(
        ValueError, match='sample_weight needs a loss that returns a value for each sample: pass reduction="none"'
    ):
        fit(CLASSES, sample_weight=numpy.ones(62))
    with pytest.raises(
        ValueError, match="held-out part of fold 0 has no sample with a positive weight; choose another cv"
    ):
        fit(CLASSES, nn.CrossEntropyLoss(reduction="none"), cv=KFold(4), sample_weight=numpy.arange(62) >= 16)
    with pytest.raises(ValueError, match="training part of fold 0 has no sample of class 2"):
        fit(CLASSES, nn.CrossEntropyLoss(reduction="none"), sample_weight=CLASSES != 2)
    with pytest.raises(ValueError, match="Negative values"):
        fit(CLASSES, nn.CrossEntropyLoss(reduction="none"), sample_weight=-numpy.ones(62))
    with pytest.raises(ValueError, match="Unknown label type"):
        fit(NUMBERS)
    with pytest.raises(
        ValueError, match=r"each strength has diverged, with lr=0\.01: pass a smaller lr, or scale the features"
    ):
        StrengthCV(nn.Linear(6, 3), cross_entropy, [1e-3], **TRAINING).fit(1e38 * X, CLASSES)
    with pytest.raises(ValueError, match="contains NaN"):
        StrengthCV(network, cross_entropy, [1e-3]).fit(numpy.where(X > 2, numpy.nan, X), CLASSES)


def test_scikit_learn_is_needed_for_it_only() -> None:
    program = (
        "import sys, regkernels.selection as selection; selection.StackedModels; assert 'sklearn' not in sys.modules; "
        "sys.modules['sklearn'] = None; selection.StrengthCV"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError: " in done.stderr and "pip install 'scikit-learn>=1.9'" in done.stderr


def test_a_small_mean_is_no_sum() -> None:
    """Of numbers so small that what is told apart once was: they double with the samples as zeros do."""
    module = nn.Linear(4, 1)
    nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    small = StrengthCV(module, mse_loss, [1e-3], cv=2, epochs=1).fit(X[:, :4], 1e-5 * NUMBERS)
    assert small.best_score_ < 0
