"""StrengthCV keeps scikit-learn's contract as far as a network can, and says what is wrong before it trains."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import _get_check_estimator_ids, estimator_checks_generator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from regkernels.selection import StrengthCV
from tests.selection.test_strength_cv import CLASSES, GROUPS, TRAINING, X, network

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


def test_scikit_learn_is_needed_for_it_only() -> None:
    program = (
        "import sys, regkernels.selection as selection; selection.StackedModels; assert 'sklearn' not in sys.modules; "
        "sys.modules['sklearn'] = None; selection.StrengthCV"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError: " in done.stderr and "pip install 'scikit-learn>=1.9'" in done.stderr
