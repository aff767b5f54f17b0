"""Checks that a peer computes what it is timed for: a few steps on small tensors, against float64 mathematics."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers.mathematics import Mathematics
from benchmarks.peers.peer import Peer, Sums, Task, Unsupported, silent
from benchmarks.peers.penalties import PENALTIES

SHAPES = ((33, 65), (130,), (5, 4, 3), (1,), (1000,))
"""Longer than any vector of a processor, with remainders: torch's fused SGD is wrong only where a vector fits in."""

STEPS = 4

# Rates and strengths that move a weight by much more than its rounding, also in bfloat16, and leave some at zero.
STRONG = Task("", l1=0.05, l2=0.02, max_grad_norm=3.0, lr=0.25)

LAYOUTS = ("contiguous", "transposed gradients", "transposed weights")


class Verdict(NamedTuple):
    """Says what is known of a peer before it is timed. At most one of the two reasons is there."""

    version: str
    reason_absent: str = ""  # why it cannot be timed at all
    wrong: str = ""  # how it differs from the mathematics on contiguous tensors, as those that are timed
    caveat: str = ""  # how it differs where tensors are not contiguous

    @property
    def note(self) -> str:
        """Returns one sentence for a table; empty for a peer without fault."""
        if self.wrong:
            return f"wrong: {self.wrong}"
        return f"wrong for other layouts: {self.caveat}" if self.caveat else ""


class Tolerance(NamedTuple):
    """Allows an error that is a part of the weight plus a part of what a step may move."""

    of_weight: float
    of_move: float
    of_sum: float


def tolerance(dtype: torch.dtype) -> Tolerance:
    """Returns what rounding may do; ``eps`` is the distance from 1 to the next number.

    Weights are rounded once per step or twice (a decay before the step), each by at most eps / 2. States may be kept in the
    weights' type, and a move is the quotient of two of them: a handful of roundings per step and state. Adam's bias
    correction ``1 - 0.999**step`` is formed in single precision by several, which leaves it 14 bits, whatever the weights'
    type. Sums may be formed in single precision; in half precision each tensor's is rounded, and then their total.
    """
    eps = torch.finfo(dtype).eps
    return Tolerance(of_weight=2 * eps, of_move=max(8 * eps, 5e-5), of_sum=max(8 * eps, 1e-6))


def checked(peer: Peer, task: Task, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Verdict:
    """Checks steps, and never raises. Strengths and rate of ``task`` do not matter, only which of them there are; asked once per process."""
    return _checked(peer, _kind(task), dtype, device)


def checked_penalty(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Verdict:
    """Does what `checked` does, for a key of `PENALTIES`."""
    return _checked_penalty(name, dtype, device)


def difference(
    peer: Peer, task: Task, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous"
) -> str | None:
    """Says how the peer's steps differ from its mathematics (the peer's ``penalty``), or None. Raises what the peer raises."""
    task = _kind(task)
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(_weights(shape, generator).to(device, dtype)) for shape in SHAPES]
    for param in params:
        param.grad = torch.zeros_like(param)
        if layout == "transposed gradients":
            param.grad = _transposed(param.grad)
        elif layout == "transposed weights":
            param.data = _transposed(param.data)
            param.grad = _transposed(param.grad)
    step = peer.make(task, params)
    truth, allowed = Mathematics(task, peer.penalty), tolerance(dtype)
    kind = f" ({peer.penalty})" if task.l1 or task.l2 else ""
    for number in range(1, STEPS + 1):
        before = _doubles(params)
        for param, weight in zip(params, truth.latent or before, strict=True):
            assert param.grad is not None
            param.grad.copy_(_gradients(weight, generator))
        gradients = _doubles([param.grad for param in params])
        returned = step()
        after = _doubles(params)
        expected = truth.step(before, gradients)
        # PAT's own weights are not ours to read, so their rounding adds up over the steps.
        rounds = number if peer.penalty == "averaging" else 1
        found = _weights_differ(before, after, expected, allowed, task, rounds)
        if found is None and task.stats:
            found = _sums_differ(returned, before, after, allowed)
        if found is not None:
            return f"{found} in step {number}{kind}"
    return None


def penalty_difference(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str | None:
    """Says how value or gradient of a penalty differ from the formula, or returns None."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(_weights(shape, generator).to(device, dtype)) for shape in SHAPES]
    weights, allowed = _doubles(params), tolerance(dtype)
    value = PENALTIES[name](params, STRONG.l1, STRONG.l2)
    value.backward()
    true_value = sum(float(STRONG.l1 * w.abs().sum() + STRONG.l2 * (w * w).sum()) for w in weights)
    if not abs(float(value) - true_value) <= allowed.of_sum * true_value:
        return f"the value is {float(value):.6g}, should be {true_value:.6g}"
    for param, weight in zip(params, weights, strict=True):
        if param.grad is None:
            return "no gradient arrives"
        true_gradient = STRONG.l1 * weight.sign() + 2 * STRONG.l2 * weight
        error = (_doubles([param.grad])[0] - true_gradient).abs()
        if not bool((error <= 4 * allowed.of_weight * (STRONG.l1 + true_gradient.abs())).all()):
            return f"the gradient differs by up to {float(error.max()):.2g}"
    return None


@functools.cache
def _checked(peer: Peer, task: Task, dtype: torch.dtype, device: str) -> Verdict:
    version, reason = _found(peer)
    if reason:
        return Verdict(version, reason)
    wrong, reason = _attempt(lambda: difference(peer, task, dtype, device))
    if reason or wrong:
        return Verdict(version, reason, wrong)
    caveats = []
    for layout in LAYOUTS[1:]:
        wrong, reason = _attempt(lambda layout=layout: difference(peer, task, dtype, device, layout))
        if wrong or reason:
            caveats.append(f"{layout}: {wrong or reason}")
    return Verdict(version, caveat="; ".join(caveats))


@functools.cache
def _checked_penalty(name: str, dtype: torch.dtype, device: str) -> Verdict:
    wrong, reason = _attempt(lambda: penalty_difference(name, dtype, device))
    return Verdict("", reason, wrong)


@functools.cache
def _found(peer: Peer) -> tuple[str, str]:
    """Returns the version, or why there is none."""
    with silent():
        return _attempt(peer.find)


def _attempt(action: Callable[[], str | None]) -> tuple[str, str]:
    """Returns what the action returns, and why it did not. A peer may fail in any way that Python knows, an exit included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as autograd's about the layout of a gradient, which is on purpose
            return action() or "", ""
    except Unsupported as reason:
        return "", str(reason)
    except ImportError as error:
        return "", f"not installed: {_short(error)}"
    except (Exception, SystemExit) as error:
        return "", f"fails: {type(error).__name__}: {_short(error)}"


def _short(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return first if len(first) <= 200 else first[:200] + "..."


def _kind(task: Task) -> Task:
    return Task(
        task.rule,
        STRONG.l1 if task.l1 else 0.0,
        STRONG.l2 if task.l2 else 0.0,
        STRONG.max_grad_norm if task.max_grad_norm is not None else None,
        task.stats,
        STRONG.lr,
    )


def _weights(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws weights. Some are zero: there the subgradient is 0, and a division is an accident."""
    weights = torch.randn(shape, generator=generator)
    return weights * (torch.rand(shape, generator=generator) > 0.1)


def _gradients(w: Tensor, generator: torch.Generator) -> Tensor:
    """Draws gradients as in training: of many magnitudes, their squares small for float16, some of them zero."""
    size = 10 ** (-3 * torch.rand(w.shape, generator=generator))
    g = torch.randn(w.shape, generator=generator) * size * (torch.rand(w.shape, generator=generator) > 0.05)
    # Where a penalty's gradient just about cancels it, clipped or not, rounding decides on the sign of their sum, and Adam's
    # first step is the sign. Only gradients that are too small for that stay opposed.
    smallest = torch.minimum(STRONG.l1 * w.sign().abs(), 2 * STRONG.l2 * w.abs())
    return torch.where((g * w < 0) & (g.abs() > smallest / 2), -g, g)


def _transposed(tensor: Tensor) -> Tensor:
    """Copies the values, the first dimension's elements side by side in memory."""
    backwards = list(range(tensor.dim()))[::-1]
    return tensor.permute(backwards).contiguous().permute(backwards)


def _doubles(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [t.detach().to("cpu", torch.float64, copy=True) for t in tensors if t is not None]


def _weights_differ(
    before: list[Tensor], after: list[Tensor], expected: list[Tensor], allowed: Tolerance, task: Task, rounds: int
) -> str | None:
    was, is_, should = (torch.cat([t.flatten() for t in tensors]) for tensors in (before, after, expected))
    if not is_.isfinite().all():
        return f"{100 * float((~is_.isfinite()).double().mean()):.0f} % of the weights become NaN or infinite"
    if torch.equal(was, is_):
        return "no weight changes"
    move = torch.maximum((should - was).abs(), torch.tensor(task.lr))
    error = (is_ - should).abs()
    beyond = error > rounds * (allowed.of_weight * torch.maximum(was.abs(), should.abs()) + allowed.of_move * move)
    if beyond.any():
        worst = float(error[beyond].max())
        if torch.equal(was[beyond], is_[beyond]):
            return f"weights stay as they are where they should move by up to {worst:.2g},"
        return f"{100 * float(beyond.double().mean()):.2g} % of the weights differ, by up to {worst:.2g},"
    # A weight on the edge may be rounded to either side of it, in half precision not a few.
    missed = (is_ != 0) & (should == 0)
    if missed.sum() > 0.25 * (should == 0).sum():
        return f"{int(missed.sum())} weights that should be zero are not"
    return None


def _sums_differ(returned: object, before: list[Tensor], after: list[Tensor], allowed: Tolerance) -> str | None:
    """Says how sums differ. A recipe logs the norms that are in its loss, so before the step; everybody else those after it."""
    if not isinstance(returned, Sums):
        return "the sums are not returned"
    for name, power in (("l1_norm", 1), ("squared_norm", 2)):
        logged = getattr(returned, name)
        truths = [sum(float((w.abs() ** power).sum()) for w in weights) for weights in (before, after)]
        if logged is not None and not any(abs(float(logged.sum()) - t) <= allowed.of_sum * t for t in truths):
            return f"{name} is {float(logged.sum()):.6g}, should be {truths[1]:.6g},"
    nonzeros = sum(int(w.count_nonzero()) for w in after)
    if int(returned.nonzeros.sum()) != nonzeros:
        return f"nonzeros is {int(returned.nonzeros.sum())}, should be {nonzeros},"
    return None
