"""Holds what a path tells."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANY_LINES = 300


@dataclass(frozen=True, repr=False)
class RegularizationPath:
    """Holds solutions for a sequence of strengths, in the order in which they were computed; ``n`` of them.

    - ``lambdas``: the strengths, float64, shape (n,)
    - ``states``: the model's state dict, each entry stacked: shape (n, \\*shape). ``load`` puts one into a model.
    - ``penalised``: the names of the penalised parameters
    - ``losses``: the mean loss of the data, without the penalty, float64, shape (n,)
    - ``penalties``: the penalty, weight decay included, float64, shape (n,); the objective is the sum of both. NaN where regkernels has
      no function for the penalty.
    - ``scores``: what ``score`` said of the validation data, larger is better, float64, shape (n,); None without such data
    - ``nonzeros``: penalised weights that are not exactly zero, int64, shape (n,)
    - ``zero_groups``: groups that are exactly zero, int64, shape (n,); None where the penalty has no groups
    - ``violations``: the largest distance of 0 from the subdifferential of the objective, in units of the loss per weight of a feature of
      size one (per weight, where features are not known), float64, shape (n,): how far a point is from being a solution
    - ``converged``: where the violation is within the tolerance, bool, shape (n,)
    - ``steps``: of the solver or optimizer, int64, shape (n,)
    """

    lambdas: Tensor
    states: dict[str, Tensor]
    penalised: tuple[str, ...]
    losses: Tensor
    penalties: Tensor
    scores: Tensor | None
    nonzeros: Tensor
    zero_groups: Tensor | None
    violations: Tensor
    converged: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.lambdas)

    def __repr__(self) -> str:
        said = [
            f"{len(self)} strengths from {self.lambdas[0]:.4g} to {self.lambdas[-1]:.4g}",
            f"{self.nonzeros[0]} to {self.nonzeros[-1]} of {self.weights.shape[1]:,} weights nonzero",
            f"{int(self.converged.sum())} converged",
        ]
        if self.scores is not None:
            said.append(f"best score {self.scores[self.best]:.4g} at {self.lambdas[self.best]:.4g}, index {self.best}")
        return f"{type(self).__name__}({'; '.join(said)})"

    @property
    def weights(self) -> Tensor:
        """Returns a copy of all penalised weights, flat, shape (n, weights)."""
        return torch.cat([self.states[name].flatten(1) for name in self.penalised], dim=1)

    @property
    def best(self) -> int:
        """Returns the index of the best score; of equal ones that with the largest strength. NaN is worse than any number.

        Raises:
            ValueError: for a path without validation data.
        """
        if self.scores is None:
            raise ValueError("the path has no scores: pass validation=(inputs, targets) to regularization_path")
        scores = self.scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        ties = (scores == scores.max()).nonzero().flatten().tolist()
        return max(ties, key=lambda index: self.lambdas[index].item())

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Copies the model's state dict at one strength.

        Raises:
            IndexError: for an index of none.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"index must be from {-len(self)} to {len(self) - 1}, as the path has {len(self)} strengths, got {index}"
            )
        return {name: stacked[index].clone() for name, stacked in self.states.items()}

    def load(self, model: nn.Module, index: int) -> nn.Module:
        """Gives ``model`` the weights at one strength, changes it and returns it."""
        model.load_state_dict(self.state_dict(index))
        return model

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the weights over the strength, or how many are not zero where there are more than 300; the scores on a second scale.

        Args:
            axes: where; None makes a new figure with ``matplotlib.pyplot``, which must be installed.

        Returns:
            The axes with the weights.

        Raises:
            ImportError: without matplotlib.
        """
        if axes is None:
            if importlib.util.find_spec("matplotlib") is None:
                raise ImportError("plot needs matplotlib: pip install matplotlib")
            from matplotlib import pyplot

            axes = pyplot.subplots(layout="constrained")[1]
        lambdas = self.lambdas.tolist()
        weights = self.weights
        if weights.shape[1] <= _MANY_LINES:
            axes.plot(lambdas, weights.double().cpu().numpy(), linewidth=1.2)
            axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
            axes.set_ylabel("weight")
        else:
            axes.plot(lambdas, self.nonzeros.tolist(), color="#0072B2")
            axes.set_ylabel(f"nonzero weights (of {weights.shape[1]:,})")
        if min(lambdas) > 0:
            axes.set_xscale("log")
        elif max(lambdas) > 0:
            axes.set_xscale("symlog", linthresh=min(value for value in lambdas if value > 0))
        axes.set_xlabel("lambda")
        axes.spines[["top"]].set_visible(False)
        if self.scores is None:
            axes.spines[["right"]].set_visible(False)
            return axes
        scale = axes.twinx()
        scale.plot(lambdas, self.scores.tolist(), color="black", linestyle="--", linewidth=1.2)
        scale.axvline(lambdas[self.best], color="black", linestyle=":", linewidth=1)
        scale.set_ylabel("validation score (dashed; dotted line: the best)")
        scale.spines[["top"]].set_visible(False)
        return axes


@dataclass
class Points:
    """Collects what a path finds, point by point."""

    penalised: tuple[str, ...]
    states: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[dict[str, float | int | bool | None]] = field(default_factory=list)

    def add(self, model: nn.Module, **row: float | int | bool | None) -> None:
        """Adds one point: the weights, which are copied, and the numbers."""
        self.states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        self.rows.append(row)

    def path(self, lambdas: Sequence[float]) -> RegularizationPath:
        """Returns all of them."""

        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([row[name] for row in self.rows], dtype=dtype)

        def optional(name: str, dtype: torch.dtype) -> Tensor | None:
            return None if self.rows[0][name] is None else column(name, dtype)

        return RegularizationPath(
            lambdas=torch.tensor(lambdas, dtype=torch.float64),
            states={name: torch.stack([state[name] for state in self.states]) for name in self.states[0]},
            penalised=self.penalised,
            losses=column("loss", torch.float64),
            penalties=column("penalty", torch.float64),
            scores=optional("score", torch.float64),
            nonzeros=column("nonzeros", torch.int64),
            zero_groups=optional("zero_groups", torch.int64),
            violations=column("violation", torch.float64),
            converged=column("converged", torch.bool),
            steps=column("steps", torch.int64),
        )
