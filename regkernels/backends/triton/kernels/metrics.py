"""Computes metrics: the step s that an optimizer took for an element, from the state it left behind.

Same names and order of lines as in regkernels/reference/metrics.py and csrc/metrics.h.
"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it)

from regkernels.backends.triton.kernels.rules import variance
from regkernels.backends.triton.kernels.shrink import divide, square_root


@triton.jit
def constant(operands, h):
    return h.lr


@triton.jit
def root(operands, h):
    square_avg = operands[0]
    return divide(h.lr, square_root(square_avg) * h.inverse_sqrt_bias2 + h.eps)


@triton.jit
def centered(operands, h):
    square_avg, grad_avg = operands
    return divide(h.lr, square_root(variance(square_avg, grad_avg)) + h.eps)


@triton.jit
def reciprocal(operands, h):
    norm = operands[0]
    return divide(h.lr, norm + h.eps)


@triton.jit
def direct(operands, h):
    return operands[0]


METRICS = {
    "constant": constant,
    "root": root,
    "centered": centered,
    "reciprocal": reciprocal,
    "direct": direct,
}
