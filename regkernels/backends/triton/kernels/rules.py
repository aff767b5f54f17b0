"""The optimizer rules: from a gradient to a direction u, a step s and the new states.

Same names and order of lines as in regkernels/reference/rules.py and csrc/rules.h. The update kernel takes one of these
functions as an argument; ``h`` is a `regkernels.hyper.Hyper` of scalars in the compute type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from regkernels.backends.triton.kernels.shrink import divide, square_root


@triton.jit
def sgd(g, states, h):
    u = g
    return u, h.lr, states


@triton.jit
def momentum(g, states, h):
    buffer = states[0]
    buffer = h.momentum * buffer + h.one_minus_dampening * g
    u = tl.where(h.nesterov != 0, g + h.momentum * buffer, buffer)
    return u, h.lr, (buffer,)


@triton.jit
def adam(g, states, h):
    exp_avg, exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    u = exp_avg * h.inverse_bias1
    s = divide(h.lr, square_root(exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps)
    return u, s, (exp_avg, exp_avg_sq)


@triton.jit
def amsgrad(g, states, h):
    exp_avg, exp_avg_sq, max_exp_avg_sq = states
    exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g
    exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g
    max_exp_avg_sq = tl.maximum(max_exp_avg_sq, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
    u = exp_avg * h.inverse_bias1
    s = divide(h.lr, square_root(max_exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps)
    return u, s, (exp_avg, exp_avg_sq, max_exp_avg_sq)


RULES = {"sgd": sgd, "momentum": momentum, "adam": adam, "amsgrad": amsgrad}
