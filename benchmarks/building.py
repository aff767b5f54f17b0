"""Builds cases: who takes part, parameters with gradients, and how much memory a step needs and moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import shapes
from benchmarks.case import Case, Contender, Scope
from benchmarks.peers import PEERS, Step, Task, Unsupported
from benchmarks.peers.check import Verdict, checked
from benchmarks.shapes import Shapes

FUSED, FOREACH, RECIPE = "torch fused", "torch foreach", "recipe, torch fused"
OURS, FLAT = "regkernels", "regkernels, FlatParameters"

WIDE_STATES = ("regkernels", "DeepSpeed", "bitsandbytes")  # float32 at least; others keep the type of the weights
KAHAN_SUMS = ("optimi",)  # one more state for weights of two bytes

L1, L2 = 1e-4, 1e-3
STATES = {"sgd": 0, "momentum": 1, "adamw": 2}  # per weight, by rule


def peers(task: Task, scope: Scope) -> list[str]:
    """Returns all that offer such a task. The first is what the others are compared with: torch at its fastest."""
    kinds = ("subgradient", "averaging", "proximal") if task.l1 else ("coupled", "proximal")
    names = [name for name, peer in PEERS.items() if peer.penalty in kinds]
    names.sort(key=lambda name: name != (RECIPE if task.l1 else FUSED))
    return in_time(names, scope)


def in_time(names: Iterable[str], scope: Scope) -> list[str]:
    """Drops from a quick run what is compiled, which takes longer than it may."""
    return [name for name in names if not (scope.quick and "compiled" in name)]


def lists(scope: Scope, usual: Sequence[str], quick: Sequence[str]) -> Sequence[str]:
    """Returns names of lists of shapes: those that were asked for, or what a suite takes without being asked."""
    return scope.shapes or (quick if scope.quick else usual)


def taking_part(names: Sequence[str], scope: Scope) -> list[str]:
    """Keeps those that were asked for, and the first one."""
    return [name for name in names if name == names[0] or not scope.peers or name in scope.peers]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parameters(of: Shapes, scope: Scope, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(0.02 * torch.randn(shape, device=scope.device, dtype=dtype)) for shape in of]


def gradients(of: Shapes, scope: Scope, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [1e-3 * torch.randn(shape, device=scope.device, dtype=dtype) for shape in of]


def give(params: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def bytes_of_states(peer: str, task: Task, dtype: torch.dtype) -> int:
    """Counts per weight: those with narrow weights save where states are as narrow, and lose where they add corrections."""
    wide = peer.startswith(WIDE_STATES)
    size = STATES[task.rule] * (max(dtype.itemsize, 4) if wide else dtype.itemsize)
    return size + (dtype.itemsize if peer in KAHAN_SUMS and dtype.itemsize == 2 else 0)


def bytes_of_step(task: Task, elements: int, dtype: torch.dtype, states: int) -> int:
    """Counts what a step moves: weights and states are read and written, gradients read, twice where their norm has to be known first."""
    reads_of_gradients = 1 if task.max_grad_norm is None else 2
    return elements * ((2 + reads_of_gradients) * dtype.itemsize + 2 * states)


def step_case(
    suite: str,
    name: str,
    of: Shapes,
    task: Task,
    names: Sequence[str],
    scope: Scope,
    dtype: torch.dtype = torch.float32,
    wrap: Callable[[Contender], Contender] = lambda contender: contender,
    remark: str = "",
    **fields: Any,
) -> Case:
    """Makes a case whose contenders take steps. ``wrap`` changes a contender that has been made; ``remark`` goes to all notes.

    Steps without penalty and clipping only read gradients. All contenders then have the same ones, so that more of them
    fit into memory.
    """
    elements, names = shapes.elements(of), taking_part(names, scope)
    shared = not (task.l1 or task.l2 or task.max_grad_norm)
    grads = partial(gradients, of, scope, dtype)
    if shared:
        grads = cache(grads)
    notes: dict[str, str] = {}

    def make(peer: str) -> Contender:
        notes[peer] = "; ".join(filter(None, (verified(checked(PEERS[peer], task, dtype, scope.device)), remark)))
        params = parameters(of, scope, dtype)
        give(params, grads())
        step = PEERS[peer].make(task, params)
        warm_up(step)
        moved = bytes_of_step(task, elements, dtype, bytes_of_states(peer, task, dtype))
        return wrap(Contender(step, bytes_moved=moved, keep=params))

    of_each = [(2 - shared) * dtype.itemsize + bytes_of_states(peer, task, dtype) for peer in names]
    # Shared gradients, and what foreach and autograd need in between, of one contender at a time.
    between = dtype.itemsize + 8
    return Case(
        suite,
        name,
        {peer: partial(make, peer) for peer in names},
        bytes_moved=bytes_of_step(task, elements, dtype, STATES[task.rule] * dtype.itemsize),
        memory=elements * (sum(of_each) + between),
        notes=notes,
        **fields,
    )


def verified(verdict: Verdict) -> str:
    """Returns what a table should say of a peer; it computes something, or it is left out."""
    if verdict.reason_absent:
        raise Unsupported(verdict.reason_absent)
    return verdict.note


def warm_up(run: Step, prepare: Step = lambda: None) -> None:
    """Runs three times: the second step finds states and may be compiled anew, so two are not enough. What fails here is left out."""
    try:
        for _ in range(3):
            prepare()
            run()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise Unsupported(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error
