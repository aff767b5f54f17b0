"""Training that is interrupted in every way and order, against one that nobody interrupts, and against torch.optim.

What must not be noticed is done to one optimizer alone, by the kernels; its twin, by the reference, only takes the steps.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

import regkernels
from regkernels import optim
from tests.fuzz import strategies
from tests.fuzz.engine import given as as_given
from tests.fuzz.profiles import fuzzed
from tests.support import cases, engine

Packed = dict[str, Any]
SHAPES = ((5, 7), (), (33,), (2, 3, 4), (0,), (6, 6))


class Side:
    """An optimizer with parameters of its own."""

    def __init__(self, kind: type[torch.optim.Optimizer], setting: engine.Setting, **options: Any) -> None:
        self.kind, self.setting, self.options = kind, setting, options
        self.params: list[nn.Parameter] = []
        self.optimizer: Any = None

    def add(self, weights: list[Tensor], options: dict[str, Any]) -> None:
        params = [nn.Parameter(weight.clone()) for weight in weights]
        self.params += params
        group = {"params": params, **as_given(options, params)}
        if self.optimizer is None:
            self.optimizer = self.kind([group], **self.options)
        else:
            self.optimizer.add_param_group(group)

    def fresh(self) -> Any:
        """An optimizer of the same groups, without states."""
        listed = [{**group, "params": list(group["params"])} for group in self.optimizer.param_groups]
        for group in listed:
            group.pop("param_numbers", None)  # which are the optimizer's own, and saved
        return self.kind(listed, **self.options)

    def step(self, gradients: list[Tensor | None]) -> None:
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = None if gradient is None else gradient.to(param.dtype)
        with engine.active(self.setting):
            self.optimizer.step()

    def states(self, change: Callable[[Tensor], Tensor]) -> None:
        for state in self.optimizer.state.values():
            for key, value in state.items():
                if key != "step" and isinstance(value, Tensor):
                    state[key] = change(value)


def with_wide_counts(outcome: engine.Outcome) -> engine.Outcome:
    """Brings counts to float64: one that was wider than it has to be is narrower after it was loaded."""
    return {name: tensor.double() if name.endswith(": step") else tensor for name, tensor in outcome.items()}


class Interrupted(RuleBasedStateMachine):
    ours: Side
    flat = "not"
    """Or "whole", or "moved": then zero_grad refuses, as it must."""

    @initialize(
        data=st.data(),
        setting=st.sampled_from(engine.kernels(threads=(1,))),
        regularised=st.booleans(),
        seed=strategies.seeds,
    )
    def begin(self, data: st.DataObject, setting: engine.Setting, regularised: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.data, self.regularised, self.chance = data, regularised, random.Random(seed)
        self.rule = data.draw(st.sampled_from([name for name in cases.STATES if regularised or name != "Lion"]))
        self.own = data.draw(strategies.own_options(self.rule, comparable=not regularised))
        self.dtype = data.draw(st.sampled_from([*cases.DTYPES] if regularised else [torch.float64]))
        precision = data.draw(strategies.precisions({self.dtype})) if regularised else {}
        options = {"stats": True, **precision}
        kind = getattr(optim, self.rule)
        self.ours, self.calm = Side(kind, setting, **options), Side(kind, engine.REFERENCE, **options)
        self.theirs = None if regularised else Side(getattr(torch.optim, self.rule), engine.REFERENCE)
        if self.rule == "Adagrad":  # torch's takes it from no param group
            of_all = {"initial_accumulator_value": self.own.pop("initial_accumulator_value")}
            for side in self.sides:
                side.options.update(of_all)
        self.add_group()

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.ours, self.calm, self.theirs) if side is not None]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.ours.optimizer.param_groups

    def drawn_options(self) -> dict[str, Any]:
        if not self.regularised:
            return self.data.draw(strategies.plain(self.rule))
        return strategies.redrawn(self.data.draw(strategies.penalties(self.rule, None, weighted=False)))

    # --- what counts ---

    @invariant()
    def goes_on(self) -> None:
        """After most of what is done comes a step, without the gradients of some parameters."""
        if self.chance.random() < 0.7:
            self.step({self.chance.randrange(8) for _ in range(self.chance.choice([0, 0, 1, 3]))})

    @rule(missing=st.sets(st.integers(0, 7), max_size=3))
    def step(self, missing: set[int]) -> None:
        gradients = [torch.randn(param.shape, dtype=torch.float64) for param in self.ours.params]
        for side in self.sides:
            side.step([None if n in missing else gradient for n, gradient in enumerate(gradients)])
        got, expected = engine.snapshot(self.ours.optimizer), engine.snapshot(self.calm.optimizer)
        engine.assert_same(with_wide_counts(got), with_wide_counts(expected), "interrupted")
        if self.theirs is not None:
            theirs = engine.snapshot(self.theirs.optimizer)
            ours = {name: tensor for name, tensor in got.items() if not name.startswith("stats")}
            engine.assert_close(ours, theirs, "torch.optim", rtol=1e-10)

    @rule()
    def change_options(self) -> None:
        index = self.data.draw(st.integers(0, len(self.groups) - 1))
        options = self.drawn_options()
        for side in self.sides:
            group = side.optimizer.param_groups[index]
            group.update(as_given(options, group["params"]))

    @precondition(lambda self: len(self.groups) < 3)
    @rule()
    def add_group(self) -> None:
        shapes = self.data.draw(st.lists(st.sampled_from(SHAPES), max_size=3))
        options = {**self.own, **self.drawn_options()}
        weights = [torch.randn(shape, dtype=torch.float64).to(self.dtype) for shape in shapes]
        if self.rule == "Adagrad" and self.ours.optimizer is not None:
            self.theirs = None  # torch's cannot step what is added
        for side in self.sides:
            side.add(weights, options)

    @precondition(lambda self: self.ours.params)
    @rule()
    def remove_parameter(self) -> None:
        number = self.data.draw(st.integers(0, len(self.ours.params) - 1))
        for side in self.sides:
            param = side.params.pop(number)
            for group in side.optimizer.param_groups:
                group["params"] = [other for other in group["params"] if other is not param]
            side.optimizer.state.pop(param, None)

    @rule(transposed=st.booleans())
    def exchange_weights(self, transposed: bool) -> None:
        self.is_moved()
        new = [torch.randn(param.shape, dtype=torch.float64) for param in self.ours.params]
        for side in self.sides:
            for param, weight in zip(side.params, new, strict=True):
                param.data = cases.LAYOUTS["transposed" if transposed else "contiguous"](weight).to(param.dtype)

    @precondition(lambda self: self.theirs is None and self.ours.options.get("param_rounding") != "remainder")
    @precondition(lambda self: self.ours.options.get("state_dtype") is None)
    @rule(dtype=st.sampled_from(cases.DTYPES))
    def exchange_dtype(self, dtype: torch.dtype) -> None:
        self.is_moved()
        for side in self.sides:
            for param in side.params:
                param.grad = None
                param.data = param.data.to(dtype)

    @rule()
    def halve_states(self) -> None:
        for side in self.sides:
            side.states(lambda value: value.mul_(0.5) if value.is_floating_point() else value)

    # --- what must not be noticed ---

    @rule(through=st.sampled_from(["nothing", "copies", "a file", "itself", "torch"]))
    def load(self, through: str) -> None:
        packed = self.ours.optimizer.state_dict()
        if through == "copies":
            packed = copy.deepcopy(packed)
        if through == "a file":
            file = io.BytesIO()
            torch.save(packed, file)
            file.seek(0)
            packed = torch.load(file, weights_only=True)
        if through == "torch" and self.theirs is not None:
            other = getattr(torch.optim, self.rule)([{"params": group["params"]} for group in self.groups])
            other.load_state_dict(packed)
            packed = other.state_dict()
        if through != "itself":
            self.ours.optimizer = self.ours.fresh()
        self.ours.optimizer.load_state_dict(packed)

    @rule(how=st.sampled_from(["deepcopy", "pickle", "copy"]))
    def duplicate(self, how: str) -> None:
        whole = (self.ours.params, self.ours.optimizer)
        if how == "copy":
            self.ours.optimizer = copy.copy(self.ours.optimizer)
        else:
            self.flat = "not"  # those of the copy never were
            whole = copy.deepcopy(whole) if how == "deepcopy" else pickle.loads(pickle.dumps(whole))
            self.ours.params, self.ours.optimizer = whole

    @rule()
    def move_weights(self) -> None:
        self.is_moved()
        for param in self.ours.params:
            param.data = param.data.clone()

    @rule()
    def move_states(self) -> None:
        self.ours.states(Tensor.clone)

    @rule()
    def look_at_states(self) -> None:
        assert self.ours.optimizer.state is not None

    @precondition(lambda self: self.flat != "moved")
    @rule(to_none=st.booleans())
    def zero_grad(self, to_none: bool) -> None:
        self.ours.optimizer.zero_grad(set_to_none=to_none)

    @precondition(lambda self: self.ours.params)
    @rule()
    def flatten(self) -> None:
        for param in self.ours.params:
            param.grad = None
        regkernels.FlatParameters(self.ours.params)
        self.flat = "whole"

    def is_moved(self) -> None:
        self.flat = "not" if self.flat == "not" else "moved"


def test_interrupted_training() -> None:
    run_state_machine_as_test(Interrupted, settings=fuzzed(30, steps=12))
