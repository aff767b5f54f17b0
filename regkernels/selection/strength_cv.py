"""Chooses the strength of a penalty by cross-validation behind scikit-learn's interface; all networks are trained at once."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regkernels.optim import AdamW
from regkernels.selection.cv_results import cv_results, draw
from regkernels.selection.fold_rows import check_folds, checked_folds
from regkernels.selection.grid import chosen_by, grid_of, said_of_edge
from regkernels.selection.prototype import check_stackable, new_module, prepared
from regkernels.selection.recipe import Recipe
from regkernels.selection.targets import Targets, targets_of
from regkernels.validation import one_of
from regkernels.warn import warn

try:
    from sklearn.base import BaseEstimator
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import check_cv
    from sklearn.utils import check_random_state
    from sklearn.utils._tags import ClassifierTags, RegressorTags
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"StrengthCV needs scikit-learn 1.9 or newer, which cannot be imported ({error}): pip install 'scikit-learn>=1.9'"
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _classifies(estimator: StrengthCV) -> bool:
    return targets_of(estimator.loss).are_labels


class StrengthCV(BaseEstimator):
    """Chooses how strong a penalty on a network is, by cross-validation, and fits all data with it.

    One network per strength and fold, all trained together by `StackedModels`: a step is one forward, one backward and one update
    for all. For small networks, whose training keeps Python busier than the processor. It pays nothing for linear models, which
    scikit-learn solves.

    Args:
        module: a `torch.nn.Module`, which is copied and never changed, or a function without arguments that makes one, called once
            under the seed. All candidates, and the fit to all data, begin with the same weights. Layers may be lazy. Dropout draws
            for each network its own masks, in training only.
        loss: takes outputs and targets, and returns their mean over the samples or a value for each (``reduction="none"``, which
            ``sample_weight`` needs). It says what is learnt: ``cross_entropy`` classes, with an output for each;
            ``binary_cross_entropy_with_logits`` two, with one output; so do their modules and partial calls; any other
            loss numbers, in the dtype of the module.
        strengths: to try, >= 0, each once, in any order; tuples for a tuple of keys, as `itertools.product` makes them.
        key: of the param groups that takes the strength: "l1", "group_l1", "weight_decay", ...; or a tuple of such keys.
        cv: folds, as scikit-learn takes them: a number, a splitter, or an iterable of index pairs. Numbers are stratified by class.
        rule: "min" takes the best mean score; "1se" the largest strength whose mean score is within one standard error of it. Pairs
            compare by their first number, then by the second.
        optimizer: called with param groups and ``lr``: a class, or `functools.partial` of one.
        lr: learning rate, >= 0.
        epochs: at most.
        batch_size: rows of a batch; None: all rows of a fold in one.
        patience: after how many epochs without a better score on its held-out rows a network stops; it is scored by its best epoch.
            None: all take all epochs and are scored after the last.
        options: further arguments of `regkernels.param_groups`, for all candidates, such as ``{"weight_decay": 0.0}``.
        random_state: number or `numpy.random.RandomState` that weights, shuffling and dropout depend on. torch's own generators are
            left as they are.
        verbose: shows a bar of epochs; needs rich.

    Attributes:
        best_strength_: a number, or a tuple for a tuple of keys.
        best_index_: its place in ``strengths``.
        best_score_: its mean score: minus the mean loss on held-out rows, without the penalty, higher is better.
        cv_results_: dictionary of arrays over strengths, as of ``GridSearchCV``: ``param_l1``, ``params``, ``split0_test_score``,
            ``mean_test_score``, ``std_test_score``, ``rank_test_score``; further ``split0_epochs``, the epoch that was scored, and
            ``mean_nonzeros``, penalised weights that were not zero then. A network that diverged has the score -inf.
        n_splits_: number of folds.
        module_: an ordinary module, fitted to all data, in evaluation mode.
        refit_epochs_: for how many epochs: with patience the mean over the folds of the chosen strength's best epochs, rounded; else
            ``epochs``.
        classes_: sorted labels, of classifiers.
        n_features_in_, feature_names_in_: of the features.
    """

    def __init__(
        self,
        module: Any,
        loss: Any,
        strengths: Any,
        *,
        key: str | tuple[str, ...] = "l1",
        cv: Any = 5,
        rule: str = "min",
        optimizer: Any = AdamW,
        lr: float = 1e-3,
        epochs: int = 100,
        batch_size: int | None = 64,
        patience: int | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.module = module
        self.loss = loss
        self.strengths = strengths
        self.key = key
        self.cv = cv
        self.rule = rule
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.options = options
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        try:
            kind = targets_of(self.loss)
        except TypeError:
            return tags  # fit says what is wrong with it
        tags.estimator_type = "classifier" if kind.are_labels else "regressor"
        tags.classifier_tags = ClassifierTags(multi_class=kind is Targets.CLASSES) if kind.are_labels else None
        tags.regressor_tags = None if kind.are_labels else RegressorTags()
        tags.target_tags.multi_output = not kind.are_labels
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> StrengthCV:
        """Chooses ``best_strength_`` on the folds and fits ``module_`` to all data with it. Returns itself.

        Args:
            X: (n, ...), given to the module in the dtype of its parameters; whole numbers as int64 where only that is possible, as with
                embeddings.
            y: labels, (n,), or numbers, (n,) or (n, outputs).
            sample_weight: (n,), >= 0: counts in the fits and in the scores; each fold counts alike.
            groups: (n,), for a ``cv`` that splits by them.

        Warns:
            UserWarning: where the chosen strength is the largest or smallest of three or more, unless it is 0.

        Raises:
            TypeError, ValueError: for data and arguments that are not allowed; nothing is fitted then.
        """
        one_of("rule", self.rule, ("min", "1se"))
        kind, grid, recipe = targets_of(self.loss), grid_of(self.key, self.strengths), self._recipe()
        X, y = self._checked(kind, X, y)
        targets, classes = kind.encoded(y)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype="float64", ensure_non_negative=True)
        splits = checked_folds(self._splits(kind, X, y, groups), len(X))
        check_folds(splits, None if classes is None else targets.numpy(), classes, weights)
        parts = [(torch.as_tensor(train), torch.as_tensor(held_out)) for train, held_out in splits]
        seed = _seed(self.random_state)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            count = 0 if classes is None else len(classes)
            prototype = prepared(new_module(self.module), self.loss, kind, X, targets, count)
            data = prototype.data(self.loss, weights)
            takes = prototype.features.dtype
            check_stackable(prototype, self.loss, lambda two: recipe.optimizer_of(two, [grid.options(0)] * 2))
            torch.manual_seed(seed)  # what has been tried does not count
            best = recipe.cross_validated(prototype, data, grid, parts, seed)
            if not best.scores.mean(1).isfinite().any():
                raise ValueError(
                    f"a network of each strength has diverged, with lr={self.lr}: pass a smaller lr, or scale the features"
                )
            chosen = chosen_by(self.rule, grid, best.scores.numpy())
            epochs = round(float(best.epochs[chosen].double().mean()))
            module = recipe.refitted(prototype, data, grid.options(chosen), epochs, seed + len(splits))
        if classes is not None:
            self.classes_ = classes
        self.module_, self.refit_epochs_, self._takes = module, epochs, takes
        self.cv_results_, self.n_splits_, self._grid = cv_results(grid, best), len(splits), grid
        self._target_shape = y.shape[1:]
        self.best_index_, self.best_strength_ = chosen, grid.strength(chosen)
        self.best_score_ = float(self.cv_results_["mean_test_score"][chosen])
        if edge := said_of_edge(grid, chosen):
            warn(edge)
        return self

    def predict(self, X: Any) -> Any:
        """Predicts labels, (n,), or numbers, in the shape of the ``y`` that was fitted."""
        outputs = self._outputs(X)
        kind = targets_of(self.loss)
        if not kind.are_labels:
            return outputs.reshape(len(outputs), *self._target_shape).numpy()
        numbers_ = outputs.argmax(1) if kind is Targets.CLASSES else (outputs.reshape(-1) > 0).long()
        return self.classes_[numbers_.numpy()]

    @available_if(_classifies)
    def predict_proba(self, X: Any) -> Any:
        """Returns probabilities, (n, classes), in the order of ``classes_``: by softmax or sigmoid of the outputs."""
        return targets_of(self.loss).probabilities(self._outputs(X).double()).numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns the accuracy of classifiers, R squared of regressors, as scikit-learn's estimators do."""
        metric = accuracy_score if _classifies(self) else r2_score
        return float(metric(y, self.predict(X), sample_weight=sample_weight))

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the mean scores with their standard errors over the strengths of the first key, and the chosen one.

        Args:
            axes: where; None makes a new figure with ``matplotlib.pyplot``, which must be installed.
        """
        check_is_fitted(self)
        return draw(self.cv_results_, self._grid, self.best_index_, self.n_splits_, axes)

    def _recipe(self) -> Recipe:
        options = {} if self.options is None else self.options
        return Recipe(self.optimizer, self.lr, self.epochs, self.batch_size, self.patience, options, bool(self.verbose))

    def _splits(self, kind: Targets, X: Any, y: Any, groups: Any) -> list[Any]:
        what = "a number of folds, a splitter of sklearn.model_selection, or a list of index pairs"
        if isinstance(self.cv, type):
            raise TypeError(
                f"cv must be {what}, got the class {self.cv.__name__}: pass an instance, {self.cv.__name__}(5)"
            )
        if isinstance(self.cv, str):
            raise ValueError(f"cv must be {what}, got {self.cv!r}")
        if hasattr(self.cv, "__iter__") and not hasattr(self.cv, "split"):
            return list(self.cv)
        return list(check_cv(self.cv, y, classifier=kind.are_labels).split(X, y, groups))

    def _checked(self, kind: Targets, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, allow_nd=True, multi_output=not kind.are_labels, y_numeric=not kind.are_labels)
        if kind.are_labels:
            check_classification_targets(y)
        return X, y

    def _outputs(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, allow_nd=True, reset=False)
        first = next(self.module_.parameters())
        with torch.no_grad():
            return self.module_(torch.tensor(X).to(first.device, self._takes)).cpu()


def _seed(random_state: Any) -> int:
    """Returns a number as it is, so that users can train a candidate by themselves; draws one from anything else."""
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))
