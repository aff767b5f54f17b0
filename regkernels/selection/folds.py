"""Computes the smooth part of linear and logistic models, on several weightings of the same rows at once: the folds of a cross-validation.

Shapes: n rows, p features, C outputs (1, or a class each), F weightings of the rows ("folds"), A strengths. Coefficients are
(F, A, C, p), intercepts (F, A, C): a model for each fold and strength. All is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Gradient(NamedTuple):
    """Holds the gradient of the mean loss, with the shapes of what it is the gradient of."""

    coefficients: Tensor
    intercepts: Tensor


class Folds(ABC):
    """Computes ``f(w, b)``, the weighted mean of a loss, for F weightings.

    With an intercept, features are centred by their means in the fold, which makes gradients of coefficients and intercepts
    independent of each other where the loss is quadratic. ``b`` is in units of ``unit``, that of a typical feature, so that one
    step size suits both.

    Args:
        x: (n, p).
        y: (n, C): targets, or indicators of the classes.
        weights: (F, n), >= 0, each row with a positive sum.
        intercept: whether there is one; without it gradients of intercepts are 0.
    """

    second_derivative: float  # the largest of the loss, in its output

    def __init__(self, x: Tensor, y: Tensor, weights: Tensor, *, intercept: bool) -> None:
        self.x, self.y, self.has_intercept = x, y, intercept
        self.weights = weights / weights.sum(1, keepdim=True)
        zeros = torch.zeros(len(weights), x.shape[1], dtype=x.dtype)
        self.means = self.weights @ x if intercept else zeros
        self.gram = self._gram() if x.shape[1] <= len(x) else None  # (F, p, p)
        largest = self._largest_eigenvalues()
        self.unit = largest.sqrt()  # (F,)
        self.curvature = self.second_derivative * largest  # (F,)

    def _gram(self) -> Tensor:
        return torch.stack([self._centred(f).T @ (w[:, None] * self._centred(f)) for f, w in enumerate(self.weights)])

    def _largest_eigenvalues(self) -> Tensor:
        if self.gram is not None:
            matrices = self.gram
        else:
            rows = [self._centred(f) * w.sqrt()[:, None] for f, w in enumerate(self.weights)]
            matrices = torch.stack([each @ each.T for each in rows])
        # Of features that are all constant it is 0, and any step size will do.
        largest = torch.linalg.eigvalsh(matrices)[:, -1]
        return torch.where(largest > torch.finfo(largest.dtype).tiny, largest, 1.0)

    def _centred(self, fold: int) -> Tensor:
        return self.x - self.means[fold]

    @abstractmethod
    def null(self) -> Tensor:
        """Returns the intercepts, (F, C), of the models without features."""

    @staticmethod
    @abstractmethod
    def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of each row, (..., n), with outputs (..., C, n) and targets (n, C)."""

    @abstractmethod
    def excess(self, outputs: Tensor) -> Tensor:
        """Returns the derivative of the loss in the outputs, (..., C, n)."""

    @abstractmethod
    def shares(self, outputs: Tensor) -> Tensor | None:
        """Returns p of the second derivative, ``p_c * (1 - p_c)`` and between two outputs ``-p_c * p_d``, of (..., C, n); None: it is 1."""

    def gradient(self, coefficients: Tensor, intercepts: Tensor, fold: Tensor | None = None) -> Gradient:
        """Returns the gradient of all models, or of some where ``fold`` (M,) is given.

        Coefficients are then (M, A, C, p): the A models at ``m`` are of ``fold[m]``.
        """
        index = slice(None) if fold is None else fold
        means, unit = self.means[index, None, None], self.unit[index, None, None]
        shift = unit * intercepts - (coefficients * means).sum(-1)
        excess = self.excess(coefficients @ self.x.T + shift[..., None]) * self.weights[index, None, None]
        total = excess.sum(-1)
        return Gradient(excess @ self.x - total[..., None] * means, unit * total * float(self.has_intercept))

    def values(self, coefficients: Tensor, intercepts: Tensor, fold: Tensor) -> Tensor:
        """Returns f of M models, (M,), with coefficients (M, C, p)."""
        shift = self.unit[fold, None] * intercepts - (coefficients * self.means[fold, None]).sum(-1)
        return (self.loss_of(coefficients @ self.x.T + shift[..., None], self.y) * self.weights[fold]).sum(-1)

    def largest_at_null(self) -> Tensor:
        """Returns max |gradient| of the coefficients where these are 0, (F,): the L1 strength from which on all are 0."""
        shape = (len(self.weights), 1, self.y.shape[1])
        nothing = torch.zeros(*shape, self.x.shape[1], dtype=self.x.dtype)
        found = self.gradient(nothing, self.null()[:, None]).coefficients.abs().flatten(1).amax(1)
        # What rounding alone could make of it is no gradient.
        sizes = (self.weights @ self.x.abs()).amax(1) * self.y.abs().max()
        return torch.where(found > 8 * torch.finfo(found.dtype).eps * sizes, found, 0.0)

    def hessians(self, coefficients: Tensor, intercepts: Tensor, fold: Tensor, chosen: Tensor) -> Tensor:
        """Returns second derivatives of M models, (M, k, k), in some of their parameters.

        ``coefficients``: (M, C, p); ``intercepts``: (M, C); ``fold``: (M,), which each model belongs to; ``chosen``: (M, k), which
        parameters, coefficient (c, j) being number ``c * p + j`` and intercept c number ``C * p + c``.
        """
        count, p = coefficients.shape[1:]
        is_intercept = chosen >= count * p
        outputs = torch.where(is_intercept, chosen - count * p, chosen // p)
        features = torch.where(is_intercept, 0, chosen % p)
        x = self.x.T[features] - torch.gather(self.means[fold], 1, features)[..., None]  # (M, k, n)
        x = torch.where(is_intercept[..., None], self.unit[fold, None, None], x)
        weights = self.weights[fold, None]
        shift = self.unit[fold, None] * intercepts - (coefficients * self.means[fold, None]).sum(-1)
        shares = self.shares(coefficients @ self.x.T + shift[..., None])
        if shares is None:
            return (x * weights) @ x.mT
        if count == 1:
            return (x * (weights * shares * (1 - shares))) @ x.mT
        shared = x * torch.gather(shares, 1, outputs[..., None].expand_as(x))
        same = outputs[:, :, None] == outputs[:, None, :]
        return torch.where(same, (shared * weights) @ x.mT, 0.0) - (shared * weights) @ shared.mT

    def plain_intercepts(self, coefficients: Tensor, intercepts: Tensor) -> Tensor:
        """Returns the intercepts for features that are not centred, (F, A, C)."""
        return self.unit[:, None, None] * intercepts - (coefficients * self.means[:, None, None]).sum(-1)


class LeastSquares(Folds):
    """Computes the mean of ``(x w + b - y)**2 / 2``."""

    second_derivative = 1.0

    def __init__(self, x: Tensor, y: Tensor, weights: Tensor, *, intercept: bool) -> None:
        super().__init__(x, y, weights, intercept=intercept)
        mean = self.null()[:, None] * self.unit[:, None, None]  # (F, 1, C)
        excess = self.weights[:, :, None] * (self.y - mean)
        self._covariance = torch.stack([self._centred(f).T @ each for f, each in enumerate(excess)]).mT[:, None]

    def gradient(self, coefficients: Tensor, intercepts: Tensor, fold: Tensor | None = None) -> Gradient:
        if self.gram is None:
            return super().gradient(coefficients, intercepts, fold)
        # Without a look at the rows. Centred features do not change the intercepts' part.
        index = slice(None) if fold is None else fold
        flat = coefficients.flatten(1, 2)
        if fold is None:
            product = flat @ self.gram
        else:
            product = torch.empty_like(flat)
            for each in fold.unique().tolist():  # not gram[fold], which is a matrix for each model
                product[fold == each] = flat[fold == each] @ self.gram[each]
        own = product.view_as(coefficients) - self._covariance[index]
        squared = self.unit[index, None, None].square() * float(self.has_intercept)
        return Gradient(own, squared * (intercepts - self.null()[index, None]))

    def null(self) -> Tensor:
        return (self.weights @ self.y) / self.unit[:, None] * float(self.has_intercept)

    @staticmethod
    def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y.T).square().sum(-2) / 2

    def excess(self, outputs: Tensor) -> Tensor:
        return outputs - self.y.T

    def shares(self, outputs: Tensor) -> Tensor | None:
        return None

    def hessians(self, coefficients: Tensor, intercepts: Tensor, fold: Tensor, chosen: Tensor) -> Tensor:
        p = self.x.shape[1]
        if self.gram is None:
            return super().hessians(coefficients, intercepts, fold, chosen)
        features = chosen.clamp(max=p - 1)
        found = self.gram[fold[:, None, None], features[:, :, None], features[:, None, :]]
        is_intercept = chosen == p
        apart = is_intercept[:, :, None] | is_intercept[:, None, :]
        both = is_intercept[:, :, None] & is_intercept[:, None, :]
        return torch.where(both, self.unit[fold, None, None].square(), torch.where(apart, 0.0, found))


class Logistic(Folds):
    """Computes the mean of ``log(1 + exp(z)) - y z`` with ``z = x w + b``, for two classes and one output."""

    second_derivative = 0.25

    def null(self) -> Tensor:
        return (
            torch.logit(self.weights @ self.y) / self.unit[:, None] if self.has_intercept else 0 * self.weights @ self.y
        )

    @staticmethod
    def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
        return (torch.nn.functional.softplus(outputs) - y.T * outputs).sum(-2)

    def excess(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid() - self.y.T

    def shares(self, outputs: Tensor) -> Tensor | None:
        return outputs.sigmoid()


class Multinomial(Folds):
    """Computes the mean cross entropy of ``softmax(x w + b)``, with an output for each of three classes or more."""

    second_derivative = 0.5

    def null(self) -> Tensor:
        shares = (self.weights @ self.y).log()
        return (shares - shares.mean(1, keepdim=True)) / self.unit[:, None] * float(self.has_intercept)

    @staticmethod
    def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
        return -(y.T * outputs.log_softmax(-2)).sum(-2)

    def excess(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-2) - self.y.T

    def shares(self, outputs: Tensor) -> Tensor | None:
        return outputs.softmax(-2)
