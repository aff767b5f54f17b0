"""StrengthCV says what is wrong before it trains, and takes what only looks wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from sklearn.model_selection import KFold
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from regkernels.selection import StrengthCV
from tests.selection.test_strength_cv import CLASSES, NUMBERS, RNG, TRAINING, X, network


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


class WithMemory(nn.Module):
    """Returns more than its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), x


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
        'loss must be a mean .* pass reduction="mean" to it, or divide by',
    ),
    ({"optimizer": "adam"}, TypeError, "optimizer must be called with param groups and lr, got 'adam': pass a class"),
    (
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])},
        TypeError,
        "optimizer must be called with param groups and lr, got .*SGD",
    ),
    ({"options": {"lr": 0.1}}, ValueError, "options have lr=0.1, which is an argument by itself: pass lr= for all"),
    ({"options": {"group_dim": 1}}, ValueError, "options have group_dim=1, .* and the penalty is l1"),
    (
        {"options": {"mcp_gamma": 3.0}},
        ValueError,
        "options have mcp_gamma=3.0, which says something of mcp, and the penalty",
    ),
    ({"options": {"amsgrd": True}}, ValueError, "options: 'amsgrd' is not known; did you mean amsgrad?"),
    (
        {"options": {"deferential": 3}},
        ValueError,
        "options: 'deferential' is not known; keys of a param group are amsgrad, ",
    ),
    ({"strengths": "123"}, TypeError, "strengths must be a list of numbers, got '123'"),
    ({"strengths": [True, False]}, TypeError, r"strengths\[0\] must be a number >= 0, got True"),
    ({"module": WithMemory()}, ValueError, "module must return a tensor, got a tuple: wrap it"),
    (
        {"module": nn.Linear(5, 3)},
        ValueError,
        r"module cannot compute rows of X, of the shape \(6,\) each: mat1 and mat2 shapes",
    ),
    ({"cv": KFold}, TypeError, r"cv must be .* got the class KFold: pass an instance, KFold\(5\)"),
    ({"cv": [1, 2]}, ValueError, r"cv\[0\] must be a pair of index arrays, training and held-out rows, got 1"),
    (
        {"cv": [([0.5], [1])]},
        ValueError,
        r"the training part of cv\[0\] must be row numbers or a mask of the 62 rows, got .*float64",
    ),
    ({"cv": [([0, 1], [62])]}, ValueError, r"the held-out part of cv\[0\] must be from 0 to 61, got 62"),
    (
        {"cv": [(numpy.ones(61, bool), [1])]},
        ValueError,
        r"cv\[0\] must be row numbers or a mask of the 62 rows, got bool of shape \(61,\)",
    ),
    (
        {"cv": [(numpy.arange(62) % 2, 1 - numpy.arange(62) % 2)]},
        ValueError,
        r"the training part of cv\[0\] has a 0 or 1 for each row, which are row numbers: pass masks of dtype bool",
    ),
    ({"cv": [([0, 1, 2], [2, 3])]}, ValueError, r"cv\[0\] trains on row 2, which is held out to be scored on"),
    (
        {"module": nn.Embedding(2, 3), "cv": 3},
        ValueError,
        "module cannot compute rows of X, .*indices",
    ),
    ({"cv": "five"}, ValueError, "cv must be .* got 'five'"),
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


def test_folds_as_masks_are_those_as_numbers() -> None:
    numbers = list(KFold(3, shuffle=True, random_state=0).split(X))
    masks = [tuple(numpy.isin(numpy.arange(62), rows) for rows in split) for split in numbers]
    one, other = (
        StrengthCV(network, cross_entropy, [1e-3, 1e-2], cv=cv, random_state=0, **TRAINING).fit(X, CLASSES)
        for cv in ([tuple(map(numpy.sort, split)) for split in numbers], masks)
    )
    numpy.testing.assert_array_equal(one.cv_results_["mean_test_score"], other.cv_results_["mean_test_score"])


def test_whole_numbers_are_places_of_an_embedding_or_numbers() -> None:
    """By what the module can compute."""
    words = RNG.integers(0, 9, (62, 6))
    bag = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(18, 3))
    found = StrengthCV(bag, cross_entropy, [1e-3, 1e-2], cv=3, random_state=0, **TRAINING).fit(words, CLASSES)
    expected = found.module_(torch.tensor(words)).argmax(1).numpy()
    numpy.testing.assert_array_equal(found.predict(words), found.classes_[expected])
    with pytest.raises(ValueError, match=r"module cannot compute rows of X, .*: index out of range"):
        StrengthCV(bag, cross_entropy, [1e-3], cv=3, **TRAINING).fit(words + 5, CLASSES)
    linear = StrengthCV(network, cross_entropy, [1e-3], cv=3, random_state=0, **TRAINING)
    both = [linear.fit(given, CLASSES).predict_proba(given) for given in (words, words.astype(float))]
    numpy.testing.assert_array_equal(*both)


@pytest.mark.parametrize(
    ("key", "strengths", "said"),
    [
        ("l1", [1e-7, 1e-6, 1e-5], None),
        (
            "l1",
            [1e-3, 10.0, 100.0],
            "the chosen l1=0.001 is the smallest that was tried, and a smaller one may be better",
        ),
        ("l1", [0.0, 10.0, 100.0], None),
        ("l1", [1e-3, 10.0], None),
        (
            ("l1", "weight_decay"),
            [(0.0, 0.1), (0.0, 10.0), (0.0, 100.0)],
            "the chosen weight_decay=0.1 is the smallest",
        ),
    ],
)
def test_a_choice_at_the_edge_of_the_grid_is_told(key: Any, strengths: Any, said: str | None) -> None:
    options: dict[str, Any] = {"key": key, "cv": 3, "random_state": 0, "lr": 0.02, "epochs": 30, "batch_size": 16}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = StrengthCV(network, cross_entropy, strengths, **options).fit(X, CLASSES)
    told = [str(one.message) for one in caught if "may be better" in str(one.message)]
    edge = found.best_strength_ == strengths[-1] and said is None and len(strengths) > 2
    assert len(told) == (said is not None or edge), (found.best_strength_, told)
    assert said is None or (told[0].startswith(said) and "add some to strengths" in told[0])


def test_what_an_optimizer_warns_of_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        StrengthCV(network(dtype=torch.bfloat16), cross_entropy, [1e-3], cv=3, random_state=0, **TRAINING).fit(
            X, CLASSES
        )
    assert [str(one.message)[:28] for one in caught].count("l1 has little effect on weig") == 1
