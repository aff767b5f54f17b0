"""The optimizer rules: from a gradient to a move of the weight, a step s and the new states.

Same names and order of lines as in regkernels/reference/rules.py and csrc/rules.h. The update kernel takes one of these
functions as an argument; ``h`` is a `regkernels.hyper.Hyper` of scalars in the compute type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide, inverse, sign, square_root


@triton.jit
def sgd(g, states, h):
    return h.lr * g, h.lr, states


@triton.jit
def momentum(g, states, h):
    buffer = states[0]
    buffer = h.momentum * buffer + h.one_minus_dampening * g
    u = tl.where(h.nesterov != 0, g + h.momentum * buffer, buffer)
    return h.lr * u, h.lr, (buffer,)


@triton.jit
def adam(g, states, h):
    exp_avg, exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    s = divide(h.lr, square_root(exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps)
    return s * (exp_avg * h.inverse_bias1), s, (exp_avg, exp_avg_sq)


@triton.jit
def amsgrad(g, states, h):
    exp_avg, exp_avg_sq, max_exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    max_exp_avg_sq = tl.maximum(max_exp_avg_sq, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
    s = divide(h.lr, square_root(max_exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps)
    return s * (exp_avg * h.inverse_bias1), s, (exp_avg, exp_avg_sq, max_exp_avg_sq)


@triton.jit
def rmsprop(g, states, h):
    square_avg = states[0]
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    s = divide(h.lr, square_root(square_avg) + h.eps)
    return s * g, s, (square_avg,)


@triton.jit
def rmsprop_momentum(g, states, h):
    square_avg, buffer = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    scale = inverse(square_root(square_avg) + h.eps)
    buffer = h.momentum * buffer + scale * g
    return h.lr * buffer, h.lr * scale, (square_avg, buffer)


@triton.jit
def variance(square_avg, grad_avg):
    difference = square_avg - grad_avg * grad_avg
    return tl.where(difference < 0, 0.0, difference)


@triton.jit
def rmsprop_centered(g, states, h):
    square_avg, grad_avg = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g
    s = divide(h.lr, square_root(variance(square_avg, grad_avg)) + h.eps)
    return s * g, s, (square_avg, grad_avg)


@triton.jit
def rmsprop_centered_momentum(g, states, h):
    square_avg, buffer, grad_avg = states
    square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g
    grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g
    scale = inverse(square_root(variance(square_avg, grad_avg)) + h.eps)
    buffer = h.momentum * buffer + scale * g
    return h.lr * buffer, h.lr * scale, (square_avg, buffer, grad_avg)


@triton.jit
def adagrad(g, states, h):
    total = states[0]
    total = total + g * g
    s = divide(h.lr, square_root(total) + h.eps)
    return s * g, s, (total,)


@triton.jit
def lion(g, states, h):
    exp_avg = states[0]
    u = sign(h.beta1 * exp_avg + h.one_minus_beta1 * g)
    exp_avg = h.beta2 * exp_avg + h.one_minus_beta2 * g
    return h.lr * u, h.lr, (exp_avg,)


RULES = {
    "sgd": sgd,
    "momentum": momentum,
    "adam": adam,
    "amsgrad": amsgrad,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop_momentum,
    "rmsprop_centered": rmsprop_centered,
    "rmsprop_centered_momentum": rmsprop_centered_momentum,
    "adagrad": adagrad,
    "lion": lion,
}
