"""All strengths and folds trained at once score as each of them trained alone; what is chosen follows from the scores."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import numpy
import pytest
import torch
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, check_cv
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from regkernels import optim
from regkernels.param_groups import param_groups
from regkernels.selection import StrengthCV
from tests.selection.one_by_one import epochs_of, one_by_one

RNG = numpy.random.default_rng(5)
X = RNG.standard_normal((62, 6))
CLASSES = (X[:, :3] + 0.5 * RNG.standard_normal((62, 3))).argmax(1)
TWO = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int)
NUMBERS = X[:, 0] - X[:, 1] ** 2 + 0.1 * RNG.standard_normal(62)
GROUPS = numpy.repeat([0, 1, 2, 3], [30, 16, 8, 8])
STRENGTHS = [1e-3, 0.1, 0.01]
TRAINING: dict[str, Any] = {"lr": 0.01, "epochs": 6, "batch_size": 16}


def network(outputs: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)


def normalised() -> nn.Module:
    """With buffers."""
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def scores_of(found: StrengthCV) -> Any:
    return numpy.stack([found.cv_results_[f"split{fold}_test_score"] for fold in range(found.n_splits_)], 1)


def epochs_in(found: StrengthCV) -> Any:
    return numpy.stack([found.cv_results_[f"split{fold}_epochs"] for fold in range(found.n_splits_)], 1)


def each_sample(loss: Any) -> Any:
    return functools.partial(loss, reduction="none")


@pytest.mark.parametrize(
    ("make", "loss", "cv", "groups"),
    [
        (network, cross_entropy, 4, None),
        (normalised, nn.CrossEntropyLoss(), GroupKFold(3), GROUPS),
        (network, each_sample(cross_entropy), GroupKFold(3), GROUPS),
        (normalised, nn.CrossEntropyLoss(reduction="none"), StratifiedKFold(3, shuffle=True, random_state=1), None),
    ],
)
def test_the_same_scores_as_one_after_the_other(make: Any, loss: Any, cv: Any, groups: Any) -> None:
    found = StrengthCV(make, loss, STRENGTHS, cv=cv, random_state=3, **TRAINING).fit(X, CLASSES, groups=groups)
    splits = list(check_cv(cv, CLASSES, classifier=True).split(X, CLASSES, groups))
    expected = one_by_one(
        make,
        loss,
        [{"l1": l1} for l1 in STRENGTHS],
        torch.tensor(X, dtype=torch.float32),
        torch.tensor(CLASSES),
        splits,
        seed=3,
        **TRAINING,
    )
    numpy.testing.assert_allclose(scores_of(found), expected.scores, atol=1e-5, rtol=0)
    assert numpy.ptp(expected.scores) > 0.1  # strengths and folds differ
    assert (epochs_in(found) == TRAINING["epochs"]).all() and found.refit_epochs_ == TRAINING["epochs"]


@pytest.mark.parametrize(("patience", "epochs"), [(3, 30), (4, 6)])  # the latter ends before most have stopped
def test_each_fold_stops_by_its_own_score(patience: int, epochs: int) -> None:
    training = {**TRAINING, "lr": 0.1, "epochs": epochs}
    make = functools.partial(network, 1, torch.float64)
    found = StrengthCV(make, mse_loss, STRENGTHS, patience=patience, random_state=8, **training).fit(X, NUMBERS)
    expected = one_by_one(
        make,
        mse_loss,
        [{"l1": l1} for l1 in STRENGTHS],
        torch.tensor(X),
        torch.tensor(NUMBERS)[:, None],
        list(KFold(5).split(X)),
        seed=8,
        patience=patience,
        **training,
    )
    assert numpy.ptp(expected.epochs) > 2  # folds stop at different epochs
    numpy.testing.assert_array_equal(epochs_in(found), expected.epochs)
    numpy.testing.assert_allclose(scores_of(found), expected.scores, atol=1e-8, rtol=0)
    assert found.refit_epochs_ == round(expected.epochs[found.best_index_].mean())


def test_pairs_of_keys_and_another_optimizer() -> None:
    pairs = list(itertools.product([1e-4, 1e-2, 1.0], [0.0, 0.3]))
    sgd = functools.partial(optim.SGD, momentum=0.9, weight_decay_mode="prox")
    make = functools.partial(network, 1, torch.float64)
    found = StrengthCV(
        make,
        binary_cross_entropy_with_logits,
        pairs,
        key=("group_l1", "weight_decay"),
        optimizer=sgd,
        options={"group_dim": 1},
        random_state=0,
        **TRAINING,
    ).fit(X, TWO)
    expected = one_by_one(
        make,
        binary_cross_entropy_with_logits,
        [{"group_l1": a, "weight_decay": b, "group_dim": 1} for a, b in pairs],
        torch.tensor(X),
        torch.tensor(TWO, dtype=torch.float64)[:, None],
        list(StratifiedKFold(5).split(X, TWO)),
        seed=0,
        optimizer=sgd,
        **TRAINING,
    )
    numpy.testing.assert_allclose(scores_of(found), expected.scores, atol=1e-8, rtol=0)
    assert found.best_strength_ == pairs[expected.scores.mean(1).argmax()]
    assert found.cv_results_["params"][3] == {"group_l1": 1e-2, "weight_decay": 0.3}
    numpy.testing.assert_array_equal(found.cv_results_["param_weight_decay"], [b for _, b in pairs])
    zeros = found.cv_results_["mean_nonzeros"]
    assert zeros[0] == 6 * 8 + 8 and zeros[-1] == 0


def test_sample_weights_count_in_fits_and_scores() -> None:
    weights = RNG.integers(0, 4, 62).astype(float)
    loss = each_sample(cross_entropy)
    make = functools.partial(network, 3, torch.float64)
    found = StrengthCV(make, loss, STRENGTHS, random_state=1, **TRAINING).fit(X, CLASSES, sample_weight=weights)
    splits = list(StratifiedKFold(5).split(X, CLASSES))
    data = ([{"l1": l1} for l1 in STRENGTHS], torch.tensor(X), torch.tensor(CLASSES), splits)
    expected = one_by_one(make, loss, *data, seed=1, weights=torch.tensor(weights), **TRAINING)
    numpy.testing.assert_allclose(scores_of(found), expected.scores, atol=1e-8, rtol=0)
    without = one_by_one(make, loss, *data, seed=1, **TRAINING)
    assert abs(without.scores - expected.scores).max() > 1e-2


def test_all_data_are_fitted_with_the_strength_that_is_chosen() -> None:
    make = functools.partial(network, 3, torch.float64)
    found = StrengthCV(make, cross_entropy, STRENGTHS, cv=4, random_state=2, **TRAINING).fit(X, CLASSES)
    torch.manual_seed(2)
    model = make()
    optimizer = optim.AdamW(param_groups(model, l1=found.best_strength_), lr=TRAINING["lr"])
    shuffled = epochs_of(torch.arange(62), 62, 16, 2 + 4)
    for batches in itertools.islice(shuffled, TRAINING["epochs"]):
        for rows in batches:
            optimizer.zero_grad()
            cross_entropy(model(torch.tensor(X)[rows]), torch.tensor(CLASSES)[rows]).backward()
            optimizer.step()
    for ours, theirs in zip(found.module_.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not found.module_.training and all(param.grad is None for param in found.module_.parameters())
    probabilities = model(torch.tensor(X)).softmax(1).detach().numpy()
    numpy.testing.assert_allclose(found.predict_proba(X), probabilities, atol=1e-10)
    assert found.score(X, CLASSES) == (probabilities.argmax(1) == CLASSES).mean()


def test_labels_are_encoded_and_given_back() -> None:
    names = numpy.array(["no", "yes"])[TWO]
    make = functools.partial(network, 1)
    loss = nn.BCEWithLogitsLoss()
    found = StrengthCV(make, loss, [1e-3], cv=3, random_state=0, lr=0.05, epochs=30).fit(X, names)
    assert found.classes_.tolist() == ["no", "yes"] and found.predict(X).dtype == names.dtype
    probabilities = found.predict_proba(X)
    numpy.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert ((probabilities[:, 1] > 0.5) == (found.predict(X) == "yes")).all()
    assert found.score(X, names) > 0.9


def test_numbers_keep_their_shape() -> None:
    make = functools.partial(network, 2)
    two = numpy.stack([NUMBERS, -NUMBERS], 1)
    options: dict[str, Any] = {"cv": 3, "random_state": 1, "lr": 0.05, "epochs": 60, "batch_size": 16}
    found = StrengthCV(make, mse_loss, [1e-4], **options).fit(X, two)
    assert found.predict(X).shape == (62, 2) and found.score(X, two) > 0.9
    one = StrengthCV(functools.partial(network, 1), each_sample(mse_loss), [1e-4], **options).fit(X, NUMBERS)
    assert one.predict(X).shape == (62,) and one.score(X, NUMBERS) > 0.9
    assert not hasattr(one, "predict_proba") and not hasattr(one, "classes_")


def test_a_module_is_copied_and_a_function_is_called_under_the_seed() -> None:
    torch.manual_seed(4)
    module = network()
    before = copy.deepcopy(module.state_dict())
    options: dict[str, Any] = {"cv": 3, **TRAINING}
    found = StrengthCV(module, cross_entropy, STRENGTHS, random_state=4, **options).fit(X, CLASSES)
    assert all(torch.equal(a, before[name]) for name, a in module.state_dict().items())
    assert all(param.grad is None for param in module.parameters()) and module.training
    state = torch.random.get_rng_state()
    made = StrengthCV(network, cross_entropy, STRENGTHS, random_state=4, **options).fit(X, CLASSES)
    assert torch.equal(state, torch.random.get_rng_state())
    numpy.testing.assert_array_equal(scores_of(found), scores_of(made))  # the same weights to begin with
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))
    fitted = StrengthCV(lazy, cross_entropy, STRENGTHS, random_state=4, **options).fit(X, CLASSES)
    assert fitted.module_[0].in_features == 6 and isinstance(lazy[0], nn.LazyLinear)


def test_dropout_depends_on_the_seed_and_is_off_in_scores() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    options: dict[str, Any] = {"cv": 3, **TRAINING}
    runs = [StrengthCV(make, cross_entropy, STRENGTHS, random_state=s, **options).fit(X, CLASSES) for s in (0, 0, 1)]
    first, again, other = map(scores_of, runs)
    numpy.testing.assert_array_equal(first, again)
    assert (first != other).all()
    numpy.testing.assert_array_equal(runs[0].predict_proba(X), runs[0].predict_proba(X))


def test_images_of_any_shape() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))

    images = X.reshape(62, 1, 2, 3)
    found = StrengthCV(make, cross_entropy, STRENGTHS, cv=3, random_state=0, **TRAINING).fit(images, CLASSES)
    assert found.predict(images).shape == (62,)
