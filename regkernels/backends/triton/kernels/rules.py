"""Computes the optimizer rules: from a gradient to a move of the weight, a step s and the new states.

Each in two parts: the first takes the gradient into the states and returns the second moment v, the second makes the step.
Between them v may be shared within a group of elements, where the reference calls ``share``.

Same names and order of lines as in regkernels/reference/rules.py and csrc/rules.h. The update kernel takes such a pair as
arguments; ``h`` is a `regkernels.table.hyper.Hyper` of scalars in the compute type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide, inverse, sign, square_root


@triton.jit
def nothing(g, states, h):
    return 0.0, states


@triton.jit
def sgd(g, v, states, h):
    return h.lr * g, h.lr, states


@triton.jit
def momentum_average(g, states, h):
    buffer = states[0]
    buffer = h.momentum * buffer + h.one_minus_dampening * g
    return 0.0, (buffer,)


@triton.jit
def momentum(g, v, states, h):
    buffer = states[0]
    u = tl.where(h.nesterov != 0, g + h.momentum * buffer, buffer)
    return h.lr * u, h.lr, states


@triton.jit
def adam_moments(g, states, h):
    exp_avg, exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    return exp_avg_sq, (exp_avg, exp_avg_sq)


@triton.jit
def adam(g, v, states, h):
    s = divide(h.lr, square_root(v) * h.inverse_sqrt_bias2 + h.eps)
    return s * (states[0] * h.inverse_bias1), s, states


@triton.jit
def amsgrad_moments(g, states, h):
    exp_avg, exp_avg_sq, max_exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    max_exp_avg_sq = tl.maximum(max_exp_avg_sq, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
    return max_exp_avg_sq, (exp_avg, exp_avg_sq, max_exp_avg_sq)


@triton.jit
def amsgrad(g, v, states, h):
    s = divide(h.lr, square_root(v) * h.inverse_sqrt_bias2 + h.eps)
    return s * (states[0] * h.inverse_bias1), s, states


@triton.jit
def rmsprop_moments(g, states, h):
    square_avg = states[0]
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    return square_avg, (square_avg,)


@triton.jit
def rmsprop(g, v, states, h):
    s = divide(h.lr, square_root(v) + h.eps)
    return s * g, s, states


@triton.jit
def rmsprop_momentum_moments(g, states, h):
    square_avg, buffer = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    return square_avg, (square_avg, buffer)


@triton.jit
def rmsprop_momentum(g, v, states, h):
    square_avg, buffer = states
    scale = inverse(square_root(v) + h.eps)
    buffer = h.momentum * buffer + scale * g
    return h.lr * buffer, h.lr * scale, (square_avg, buffer)


@triton.jit
def variance(square_avg, grad_avg):
    difference = square_avg - grad_avg * grad_avg
    return tl.where(difference < 0, 0.0, difference)


@triton.jit
def rmsprop_centered_moments(g, states, h):
    square_avg, grad_avg = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g
    return variance(square_avg, grad_avg), (square_avg, grad_avg)


@triton.jit
def rmsprop_centered(g, v, states, h):
    s = divide(h.lr, square_root(v) + h.eps)
    return s * g, s, states


@triton.jit
def rmsprop_centered_momentum_moments(g, states, h):
    square_avg, buffer, grad_avg = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g
    return variance(square_avg, grad_avg), (square_avg, buffer, grad_avg)


@triton.jit
def rmsprop_centered_momentum(g, v, states, h):
    square_avg, buffer, grad_avg = states
    scale = inverse(square_root(v) + h.eps)
    buffer = h.momentum * buffer + scale * g
    return h.lr * buffer, h.lr * scale, (square_avg, buffer, grad_avg)


@triton.jit
def adagrad_moments(g, states, h):
    total = states[0]
    total = total + g * g
    return total, (total,)


@triton.jit
def adagrad(g, v, states, h):
    s = divide(h.lr, square_root(v) + h.eps)
    return s * g, s, states


@triton.jit
def lion(g, v, states, h):
    exp_avg = states[0]
    u = sign(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg = h.beta2 * exp_avg + h.one_minus_beta2 * g
    return h.lr * u, h.lr, (exp_avg,)


@triton.jit
def still(g, v, states, h):
    return tl.zeros_like(g), h.lr, states


class Rule(NamedTuple):
    """Holds the two parts of a rule."""

    observe: Any  # (g, states, h) -> v, states
    advance: Any  # (g, v, states, h) -> move, s, states


RULES = {
    "sgd": Rule(nothing, sgd),
    "momentum": Rule(momentum_average, momentum),
    "adam": Rule(adam_moments, adam),
    "amsgrad": Rule(amsgrad_moments, amsgrad),
    "rmsprop": Rule(rmsprop_moments, rmsprop),
    "rmsprop_momentum": Rule(rmsprop_momentum_moments, rmsprop_momentum),
    "rmsprop_centered": Rule(rmsprop_centered_moments, rmsprop_centered),
    "rmsprop_centered_momentum": Rule(rmsprop_centered_momentum_moments, rmsprop_centered_momentum),
    "adagrad": Rule(adagrad_moments, adagrad),
    "lion": Rule(nothing, lion),
    "still": Rule(nothing, still),
}
