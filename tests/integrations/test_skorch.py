"""skorch: scikit-learn's interface, parameters by pattern, grid searches in processes, clones and pickles."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regkernels import optim
from tests.support.training import OPTIMIZERS, assert_equal, assert_near, theirs

UNPENALISED = [("*.bias", {"l1": 0.0, "weight_decay": 0.0})]


class Classifier(nn.Module):
    """Begins with the same weights in every process."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def data(dtype: str = "float32") -> tuple[numpy.ndarray, numpy.ndarray]:
    """60 rows of which the first two columns matter."""
    x = numpy.random.default_rng(0).standard_normal((60, 5)).astype(dtype)
    return x, (x[:, 0] + x[:, 1] > 0).astype("int64")


def estimator(**options: Any) -> NeuralNetClassifier:
    common = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": optim.AdamW,
        "optimizer__l1": 0.01,
        "optimizer__param_groups": UNPENALISED,
        "lr": 0.05,
        "max_epochs": 3,
        "batch_size": 15,
        "train_split": None,
        "verbose": 0,
    }
    return NeuralNetClassifier(Classifier, **{**common, **options})


def plain_fit(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int = 3, dtype: str = "float32") -> None:
    batches = DataLoader(TensorDataset(*map(torch.from_numpy, data(dtype))), batch_size=15)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def groups(model: nn.Module, l1: float) -> list[dict[str, Any]]:
    biases, others = ([p for p in model.parameters() if (p.dim() < 2) is bias] for bias in (True, False))
    return [{"params": biases, "l1": 0.0, "weight_decay": 0.0}, {"params": others, "l1": l1}]


def test_fit_with_groups_by_pattern() -> None:
    net = estimator().fit(*data())
    model = Classifier()
    plain_fit(model, optim.AdamW(groups(model, 0.01), lr=0.05))
    assert_equal(net.module_, model)
    assert [[group["l1"], {p.dim() for p in group["params"]}] for group in net.optimizer_.param_groups] == [
        [0.0, {1}],
        [0.01, {2}],
    ]
    assert any((param == 0).any() for param in net.module_.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_optim_without_regularisation(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    prefixed = {f"optimizer__{key}": value for key, value in options.items()}
    net = NeuralNetClassifier(
        Classifier,
        module__dtype=torch.float64,
        criterion=nn.CrossEntropyLoss,
        optimizer=getattr(optim, kind),
        **prefixed,
        max_epochs=3,
        batch_size=15,
        train_split=None,
        verbose=0,
    ).fit(*data("float64"))
    model = Classifier(dtype=torch.float64)
    plain_fit(model, theirs(name, model.parameters()), dtype="float64")
    assert_near(net.module_, model)


def test_grid_search_in_processes() -> None:
    """The same scores in one process and in two; the strongest penalty leaves nothing to tell the classes by."""
    grid = {"optimizer__l1": [0.0, 0.01, 10.0]}
    scores = []
    for jobs in (1, 2):
        net = estimator(max_epochs=8)
        search = GridSearchCV(net, grid, cv=3, n_jobs=jobs, scoring="accuracy", error_score="raise").fit(*data())
        scores.append(search.cv_results_["mean_test_score"])
        best = search.best_estimator_.module_
    assert numpy.array_equal(*scores)
    assert scores[0][0] > 0.8 and scores[0][1] > 0.8 and scores[0][2] < 0.7
    assert search.best_params_["optimizer__l1"] < 10.0 and any((p != 0).any() for p in best.parameters())
    last = clone(net).set_params(optimizer__l1=10.0).fit(*data())
    assert [group["l1"] for group in last.optimizer_.param_groups] == [0.0, 10.0], "patterns override what is searched"


def test_grid_search_fits_each_candidate_from_the_start() -> None:
    """No state of an optimizer is carried from one candidate to the next."""
    x, y = data()
    grid = {"optimizer__l1": [0.01, 0.01], "optimizer": [optim.Adam, optim.AdamW], "max_epochs": [2]}
    search = GridSearchCV(estimator(), grid, cv=2, scoring="neg_log_loss", error_score="raise").fit(x, y)
    for kind in (optim.Adam, optim.AdamW):
        scores = [
            score
            for score, params in zip(search.cv_results_["mean_test_score"], search.cv_results_["params"], strict=True)
            if params["optimizer"] is kind
        ]
        assert len(scores) == 2 and scores[0] == scores[1]


def test_a_clone_is_unfitted_and_fits_alike() -> None:
    net = estimator(optimizer__l1=0.02, optimizer__stats=True).fit(*data())
    copied = clone(net)
    assert not hasattr(copied, "module_") and copied.get_params()["optimizer__l1"] == 0.02
    copied.fit(*data())
    assert_equal(net.module_, copied.module_)
    assert net.optimizer_.stats is not None and torch.equal(
        net.optimizer_.stats.nonzeros, copied.optimizer_.stats.nonzeros
    )


def test_a_pickle_continues_where_it_was() -> None:
    net = estimator().fit(*data())
    other = pickle.loads(pickle.dumps(net))
    for each in (net, other):
        each.partial_fit(*data())
    assert_equal(net.module_, other.module_)
    fresh = estimator().fit(*data())
    fresh.initialize_optimizer()
    fresh.partial_fit(*data())
    assert not torch.equal(fresh.module_.layers[0].weight, net.module_.layers[0].weight), "moments were kept"


def test_saved_parameters(tmp_path: Path) -> None:
    files = {"f_params": tmp_path / "weights.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    net = estimator().fit(*data())
    net.save_params(**files)
    other = estimator(optimizer__l1=0.5).initialize()
    other.load_params(**files)
    assert [group["l1"] for group in other.optimizer_.param_groups] == [0.0, 0.01]
    for each in (net, other):
        each.partial_fit(*data())
    assert_equal(net.module_, other.module_)


def test_set_params_of_a_fitted_net() -> None:
    """``optimizer__l1`` reaches all groups, biases included; one group has a name of its own."""
    net = estimator().fit(*data())
    optimizer = net.optimizer_
    net.set_params(optimizer__param_groups__1__l1=0.5)
    assert net.optimizer_ is optimizer and [group["l1"] for group in optimizer.param_groups] == [0.0, 0.5]
    net.set_params(optimizer__l1=0.25)
    assert net.optimizer_ is optimizer and [group["l1"] for group in optimizer.param_groups] == [0.25, 0.25]
    net.partial_fit(*data())
    assert all((param == 0).any() for param in net.module_.parameters())
