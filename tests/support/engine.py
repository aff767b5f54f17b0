"""Runs what `tests.support.cases` lists, with every implementation, and compares what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import regkernels
from regkernels import backends
from regkernels.backends import extension
from tests.support import cases

Outcome = dict[str, Tensor]
Build = Callable[..., torch.optim.Optimizer]
Scenario = Callable[[Build], Iterator[torch.optim.Optimizer]]

# --- who computes ---


class Setting(NamedTuple):
    backend: str
    isa: str | None = None
    threads: int = 1
    device: str = "cpu"

    def __str__(self) -> str:
        if self.device != "cpu":
            return f"{self.backend} on {self.device}"
        return self.backend if self.isa is None else f"{self.isa} with {self.threads} threads"


REFERENCE = Setting("reference")


def kernels(threads: Iterable[int] = (1, 2)) -> list[Setting]:
    """The C++ kernels, at every instruction set of this machine; the Triton kernels where they were asked for."""
    if backends.forced() == "triton":
        return [Setting("triton")]
    with backends.use("cpp"):  # says why they are missing, where they are
        assert extension.C is not None
        return [Setting("cpp", isa, count) for isa in extension.C.available_isas() for count in threads]


@contextmanager
def active(setting: Setting) -> Iterator[None]:
    """tests/conftest.py restores instruction set and threads after each test."""
    torch.set_num_threads(setting.threads)
    if setting.isa is not None:
        assert extension.C is not None
        extension.C.set_isa(setting.isa)
    with backends.use(setting.backend):
        yield


# --- what they do ---


def make(rule: str, params: Any, library: ModuleType = regkernels.optim, **options: Any) -> torch.optim.Optimizer:
    name, own = cases.RULES[rule]
    return getattr(library, name)(params, **{**own, **options})


def train(
    case: cases.Case,
    model: cases.Model,
    setting: Setting,
    before_last: Callable[[torch.optim.Optimizer], None] | None = None,
    **options: Any,
) -> Outcome:
    """Weights, states and sums, on the CPU, after a step with each of the model's gradients. The model is left alone.
    ``l1_weights``: what makes them from each weight."""
    device = setting.device
    groups = [[nn.Parameter(weight.to(device, copy=True)) for weight in weights] for weights in model.groups]
    listed: list[dict[str, Any]] = [{"params": params} for params in groups]
    if "l1_weights" in options:
        weigh = options.pop("l1_weights")
        listed = [{**group, "l1_weights": [weigh(param.detach()) for param in group["params"]]} for group in listed]
    optimizer = make(case.rule, listed, stats=True, **{**case.options, **options})
    with active(setting):
        for step, gradients in enumerate(model.gradients, start=1):
            if before_last is not None and step == len(model.gradients):
                before_last(optimizer)
            for params, of_group in zip(groups, gradients, strict=True):
                for param, gradient in zip(params, of_group, strict=True):
                    param.grad = gradient.to(device)
            optimizer.step()
    return on_cpu(snapshot(optimizer))


def play(scenario: Scenario, build: Build, setting: Setting) -> list[Outcome]:
    """What each of the optimizers that ``scenario`` yields looked like at that moment."""
    torch.manual_seed(0)
    with active(setting):
        return [snapshot(optimizer) for optimizer in scenario(build)]


def snapshot(optimizer: torch.optim.Optimizer) -> Outcome:
    """Copies of all weights and states, under names that say where they were found."""
    # Not `optimizer.state`: a regkernels optimizer that was asked for it checks all states in every step from then on.
    states = vars(optimizer)["state"]
    found: Outcome = {}
    for index, group in enumerate(optimizer.param_groups):
        for position, param in enumerate(group["params"]):
            name = f"group {index}, parameter {position}, {tuple(param.shape)}, {param.dtype}"
            found[f"{name}: weight"] = param.detach().clone()
            for key, value in (states.get(param) or {}).items():
                if value is not None:
                    found[f"{name}: {key}"] = torch.as_tensor(value).clone()
    stats = getattr(optimizer, "stats", None)
    if stats is not None:
        found.update({f"stats: {key}": value for key, value in stats._asdict().items()})
    return found


def on_cpu(outcome: Outcome) -> Outcome:
    return {name: tensor.cpu() for name, tensor in outcome.items()}


def values_of(outcome: Outcome, what: str) -> list[Tensor]:
    return [tensor for name, tensor in outcome.items() if name.endswith(f": {what}")]


# --- and whether it is the same ---

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns of a tensor, in which 0.0 and -0.0 differ."""
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().contiguous().view(_INTEGER[tensor.element_size()])


def assert_same_bits(got: Tensor, expected: Tensor, name: str = "") -> None:
    """Equal in every bit; where NaN is expected, any NaN will do."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, name
    if torch.equal(bits(got), bits(expected)):
        return
    if got.is_complex():
        got, expected = torch.view_as_real(got), torch.view_as_real(expected)
    wrong = (bits(got) != bits(expected)) & ~(got.isnan() & expected.isnan())
    places = wrong.nonzero().tolist()
    assert not places, (
        f"{name}: {len(places)} of {wrong.numel()} elements differ, first at {places[0]}: "
        f"{got[wrong][0].item()!r} instead of {expected[wrong][0].item()!r}"
    )


def assert_same(got: Outcome, expected: Outcome, note: object = "") -> None:
    """Weights, states and counts equal in every bit; sums, which the reference forms in another order, to 1e-12."""
    assert got.keys() == expected.keys(), note
    for name, tensor in expected.items():
        if name.startswith("stats") and tensor.is_floating_point():
            torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=0, equal_nan=True, msg=f"{note}: {name}")
        else:
            assert_same_bits(got[name], tensor, f"{note}: {name}")


def assert_close(got: Outcome, expected: Outcome, note: object = "", *, rtol: float = 1e-12) -> None:
    """For torch.optim, which rounds differently. Elements near zero are measured by the tensor they are in."""
    assert got.keys() == expected.keys(), note
    for name, tensor in expected.items():
        scale = tensor.abs().max().item() if tensor.numel() else 0.0
        torch.testing.assert_close(
            got[name], tensor, rtol=rtol, atol=rtol * scale, msg=lambda text, name=name: f"{note}: {name}: {text}"
        )


def assert_kernels_agree(
    case: cases.Case, model: cases.Model, settings: Iterable[Setting] | None = None, **options: Any
) -> Outcome:
    """All kernels give the reference's bits, and among themselves the same sums. Returns the reference's outcome."""
    expected = train(case, model, REFERENCE, **options)
    first: Mapping[str, Tensor] | None = None
    for setting in kernels() if settings is None else settings:
        got = train(case, model, setting, **options)
        assert_same(got, expected, setting)
        first = first or got
        for name in ("l1_norm", "squared_norm", "grad_norm"):
            assert_same_bits(got[f"stats: {name}"], first[f"stats: {name}"], f"{setting}: {name}")
    return expected


def assert_plays_alike(scenario: Scenario, rule: str, **options: Any) -> None:
    """A story told to torch.optim, to the reference and to the kernels, once without L1 and once with it."""
    own = {"lr": cases.STRENGTHS["lr"], "weight_decay": cases.STRENGTHS["weight_decay"], **options}

    def builder(library: ModuleType, **more: Any) -> Build:
        return lambda params, **others: make(rule, params, library, **{**own, **more, **others})

    settings = [REFERENCE, *kernels(threads=(1,))]
    told = [play(scenario, builder(regkernels.optim), setting) for setting in settings]
    published = play(scenario, builder(torch.optim), REFERENCE)
    for step, (got, expected) in enumerate(zip(told[0], published, strict=True)):
        assert_close(got, expected, f"step {step} against torch.optim")
    sparse = [play(scenario, builder(regkernels.optim, l1=cases.STRENGTHS["l1"]), setting) for setting in settings]
    for outcomes in (told, sparse):
        for setting, outcome in zip(settings[1:], outcomes[1:], strict=True):
            for step, (got, expected) in enumerate(zip(outcome, outcomes[0], strict=True)):
                assert_same(got, expected, f"step {step}, {setting}")


def assert_kernels_agree_on_any_state(
    case: cases.Case, dtype: torch.dtype, settings: list[Setting]
) -> tuple[Outcome, Tensor]:
    """A step from states with every kind of number in them. Also returns where a state was given a NaN."""
    patterns = cases.every_pattern(torch.float64 if dtype == torch.float64 else torch.float32)
    permutation = torch.randperm(len(patterns))

    def exchange(optimizer: torch.optim.Optimizer) -> None:
        (param,) = optimizer.param_groups[0]["params"]
        state = optimizer.state[param]
        for number, name in enumerate(name for name in state if name != "step"):
            values = patterns[permutation].roll(number)
            state[name].copy_(values.abs() if name.endswith("_sq") else values)

    model = cases.model_of_one(*(torch.randn(len(patterns)).to(dtype) for _ in range(3)))
    return assert_kernels_agree(case, model, settings, before_last=exchange), permutation < 2
