"""Who is compared in the benchmarks computes what it is said to compute, and who does not is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import nn

import regkernels
from benchmarks.peers import PEERS, PENALTIES, Peer, Step, Sums, Task
from benchmarks.peers.check import checked, checked_penalty

# Those that are compiled take half a minute, so they are checked where they are timed.
ALWAYS = [
    "torch for-loop",
    "torch foreach",
    "torch fused",
    "recipe, torch foreach",
    "recipe, torch fused",
    "regkernels",
    "regkernels, FlatParameters",
]
RULES = ("sgd", "momentum", "adamw")
PLAIN = [Task(rule, l2=l2, max_grad_norm=1.0, stats=True) for rule in RULES for l2 in (0.0, 1.0)]
PENALISED = [Task(rule, 1.0, l2, norm, True) for rule in RULES for l2, norm in ((0.0, None), (1.0, 1.0))]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Thousands of steps on small tensors: on a busy machine, threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def offered(name: str) -> list[Task]:
    return [*([] if "recipe" in name else PLAIN), *([] if name.startswith("torch") else PENALISED)]


@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_always_there_is_right(name: str) -> None:
    for task in offered(name):
        verdict = checked(PEERS[name], task)
        assert not verdict.reason_absent and not verdict.wrong, (task, verdict)
        assert verdict.version


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in ALWAYS if name.startswith("regkernels")])
def test_we_are_right_in_every_type_and_layout(name: str, dtype: torch.dtype) -> None:
    for task in offered(name):
        assert checked(PEERS[name], task, dtype)[1:] == ("", "", ""), task


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["torch eager", "regkernels"])
def test_penalties_are_right(name: str, dtype: torch.dtype) -> None:
    assert checked_penalty(name, dtype)[1:] == ("", "", "")


def test_a_wrong_penalty_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = PENALTIES["torch eager"]
    monkeypatch.setitem(PENALTIES, "half", lambda params, l1, l2: eager(params, l1, l2 / 2))
    monkeypatch.setitem(PENALTIES, "dead", lambda params, l1, l2: eager(params, l1, l2).detach().requires_grad_())
    assert "the value is" in checked_penalty("half").wrong
    assert "gradient" in checked_penalty("dead").note


def test_half_precision_that_torch_gets_wrong_is_found_out() -> None:
    """As it is: torch 2.13's fused SGD leaves half-precision weights alone on a CPU (pytorch#191763)."""
    weights = nn.Parameter(torch.ones(130, dtype=torch.bfloat16))
    weights.grad = torch.ones_like(weights)
    torch.optim.SGD([weights], 0.25, fused=True).step()
    right = bool((weights == 0.75).all())
    for task in (Task("sgd"), Task("momentum")):
        verdict = checked(PEERS["torch fused"], task, torch.bfloat16)
        assert bool(verdict.wrong) is not right
        assert right or "stay as they are" in verdict.note


def made_of(make: Callable[[Task, Sequence[nn.Parameter]], Step], penalty: str = "coupled") -> Peer:
    return Peer("made up", lambda: "1.0", make, penalty)


def test_a_rate_that_is_a_little_off_is_found_out() -> None:
    verdict = checked(made_of(lambda task, params: torch.optim.SGD(params, task.lr * 1.001).step), Task("sgd"))
    assert verdict.version == "1.0" and not verdict.reason_absent
    assert "% of the weights differ, by up to" in verdict.wrong and verdict.note.startswith("wrong: ")


def test_a_threshold_without_the_gain_of_momentum_is_found_out() -> None:
    """The mistake that the proximal mode is there to avoid."""

    def naive(task: Task, params: Sequence[nn.Parameter]) -> Step:
        return regkernels.optim.SGD(params, task.lr, 0.9, l1=task.l1, l1_mode="decoupled").step

    verdict = checked(made_of(naive, penalty="proximal"), Task("momentum", l1=1.0))
    assert "differ" in verdict.wrong and "(proximal)" in verdict.wrong


def test_a_penalty_is_held_against_its_own_mathematics() -> None:
    """A proximal step is no subgradient step, so each fails the other's check."""
    task = Task("sgd", l1=1.0)
    for name, other in (("regkernels", "subgradient"), ("recipe, torch foreach", "proximal")):
        assert not checked(PEERS[name], task).wrong
        assert f"({other})" in checked(dataclasses.replace(PEERS[name], penalty=other), task).wrong


def test_small_weights_are_no_zeros() -> None:
    def almost(task: Task, params: Sequence[nn.Parameter]) -> Step:
        step = PEERS["regkernels"].make(task, params)

        def run() -> None:
            step()
            with torch.no_grad():
                for param in params:
                    param[param == 0] = 1e-9

        return run

    assert "should be zero" in checked(made_of(almost, penalty="proximal"), Task("sgd", l1=1.0)).wrong


def test_sums_that_are_not_those_of_the_weights_are_found_out() -> None:
    def off(task: Task, params: Sequence[nn.Parameter]) -> Step:
        step = PEERS["torch foreach"].make(task, params)

        def run() -> Sums:
            sums = step()
            assert isinstance(sums, Sums)
            return sums._replace(nonzeros=sums.nonzeros + 1)

        return run

    assert "nonzeros is" in checked(made_of(off), Task("sgd", stats=True)).wrong
    silent = made_of(lambda task, params: torch.optim.SGD(params, task.lr).step)
    assert "not returned" in checked(silent, Task("sgd", stats=True)).wrong


def test_another_layout_is_told_apart() -> None:
    """Cases are timed on contiguous tensors: who is right there is right, with a note."""

    def careless(task: Task, params: Sequence[nn.Parameter]) -> Step:
        def run() -> None:
            for param in params:
                flat = torch.as_strided(param.grad, (param.numel(),), (1,))
                param.data.view(-1).sub_(flat, alpha=task.lr)

        return run

    verdict = checked(made_of(careless), Task("sgd"))
    assert not verdict.wrong and not verdict.reason_absent
    assert "transposed gradients: " in verdict.caveat and "transposed weights: fails" in verdict.caveat
    assert verdict.note.startswith("wrong for other layouts: ")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("No module named 'nobody'"), "not installed: No module named 'nobody'"),
        (RuntimeError("its extension could not be compiled: no ninja\nand more"), "no ninja"),
        (SystemExit(1), "fails: SystemExit"),
    ],
)
def test_who_is_absent_says_why(error: BaseException, reason: str) -> None:
    def fail(*_: object) -> str:
        raise error

    absent = dataclasses.replace(PEERS["torch foreach"], find=fail)
    broken = dataclasses.replace(PEERS["torch foreach"], make=fail)
    for peer in (absent, broken):
        verdict = checked(peer, Task("sgd"))
        assert reason in verdict.reason_absent
        assert not verdict.wrong and not verdict.note and "\n" not in verdict.reason_absent


def test_a_task_that_is_not_offered_is_no_fault() -> None:
    assert checked(PEERS["torch fused"], Task("adamw", l1=1.0)).reason_absent == "torch.optim has no L1"
    assert "torch.optim alone" in checked(PEERS["recipe, torch fused"], Task("adamw")).reason_absent


def test_optional_peers_never_raise() -> None:
    """Whether they are installed or not. DeepSpeed is left out, whose extension takes minutes to compile."""
    for name in ("optimi", "bitsandbytes", "torchao PAT"):
        for task in (Task("momentum"), Task("adamw", l1=1.0)):
            verdict = checked(PEERS[name], task)
            assert bool(verdict.version) or bool(verdict.reason_absent)
