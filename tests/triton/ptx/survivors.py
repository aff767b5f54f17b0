"""Why mistakes are not caught: either nothing would be there to find, or no number, size or option here shows them."""

from __future__ import annotations

from tests.triton.ptx.excuses import Excuse

_BY_GROUPS = "update_(?:groups|resident)"
_WITHOUT_LIMIT = "(?:update_(?:groups|resident) sgd|proximal constant)"

HARMLESS = [
    Excuse("guard", ".*", "st.shared", "after the shuffles all threads of a warp have the sum, and may all store it"),
    Excuse("guard", ".*", "ld.shared", "a thread that reads too much does not look at it"),
    Excuse("guard", "group_gradient", "ld.global.b64", "of the groups of a tile there is the first"),
    Excuse("constant", ".*", "setp.eq.b32 .*, 0", "another thread, which has the same sum, stores it"),
    Excuse(
        "constant",
        f"group_.*|{_BY_GROUPS}",
        "and.b64 .*, -4294967296|setp.ne.b64 .*, 0",
        "the longer way to the same quotient",
    ),
    Excuse("constant", _BY_GROUPS, "shl.b64 .*, 32", "the upper half of a count below 2^32"),
    Excuse("constant", _BY_GROUPS, "selp.b32 .*, 1, 0, ", "whether a group has anything is told by any number but 0"),
    Excuse("constant", ".*", "and.b32 .*, [0-9]+", "the bit that it lets through is 0"),
    Excuse("constant", ".*", "shr.[su]32 .*, (2[0-9]|31)", "rounds negative numbers, of which there are none"),
    Excuse("constant", ".*", "add.s32 .*, (511|1023|2047|4095)", "one block more, in which there is nothing"),
    Excuse("constant", "group_gradient", "selp.f32 .*, 0f0+,", "is multiplied by weights that are 0"),
    Excuse("constant", "group_norms", "mov.b64 .*, 0d0+", "beyond the last group, whose norm is not stored"),
    Excuse("constant", "group_.*", "min.s64 .*, 1073741824", "no program has as many elements"),
    Excuse(
        "constant", "group_.*", "setp.lt.s32 .*, 0", "the element behind the last of a run is the first of the next one"
    ),
    Excuse(
        "operands",
        "group_.*",
        "(div|sub).s32",
        "the first element of a piece is in the run in which the piece begins: it is looked for no further",
        reads="^neg.s32",
    ),
    Excuse(
        "constant", "group_squares", "prmt.b32 .*, 0x7701U", "a byte of a thread's number that is 0 for another one"
    ),
    Excuse("constant", ".*", "cp.async.wait_group 0", "the last copies that are on their way are of nothing"),
    Excuse(
        "constant", ".*", "setp.neu.f(32|64) .*, 0[fd]", "a factor of 1 or a term of 0 that is no longer jumped over"
    ),
    Excuse(
        "constant", "(reduce|elementwise) .*", "shr.s32 .*, (8|9|10)$", "blocks that are left out are taken as a tail"
    ),
    Excuse(
        "constant", "(reduce|group_squares) .*", "mov.b32 .*, 2$", "the slot behind the last of a ring is its first one"
    ),
    Excuse("constant", "add_(runs|totals)", "mov.b64 .*, 0d0+", "the sum of an empty run, of which there is none"),
    Excuse("operands", "proximal", "sub.rn", "of the difference the magnitude is compared"),
    Excuse(
        "(constant|operands)",
        _WITHOUT_LIMIT,
        "(setp|selp)[.].*f64|setp.gt.f32 .*, 0f0+",
        "what a threshold takes is looked at where a step has a limit, and SGD's have none",
    ),
    Excuse(
        "constant",
        "proximal constant",
        "add.rn.f64 .*, 0d3FF0+",
        "a decay by the step of the element, of which SGD's have none",
    ),
    Excuse(
        "constant", "compute_rows", "setp.lt.s64 .*, 1$", "no program has a single instruction: one reads, one stores"
    ),
    Excuse(
        "constant",
        "compute_rows",
        "selp.f64 .*, 0d0+,",
        "stands for a number without a fraction, which is kept as it is",
    ),
    Excuse("constant", "compute_rows", "selp.f64 .*, 0d7FF8", "another NaN"),
    Excuse("constant", "compute_rows", "shr.u64 .*, 63", "rounds negative exponents, whose powers are NaN"),
]
"""What is wrong there has no effect for any input."""

UNSEEN = [
    Excuse("constant", "compute_rows", "shl.b64 .*, 32", "the upper half of an exponent, and none here is 2^32"),
    Excuse(
        "constant",
        "compute_rows",
        "mul.rn.f64 .*, 0d41A",
        "a number is cut elsewhere, and its parts' products are exact for those here",
    ),
    Excuse("constant", "group_.* wide", "selp.b32", "a copy of nothing becomes one of a byte that nobody reads"),
    Excuse("constant", "update_groups", "selp.b32 .*, 16, 0", "the second part of a strip longer than any here"),
    Excuse("constant", "proximal", "and.b64 .*, 9223372036854775807", "no step of another optimizer is skipped here"),
    Excuse(
        "constant",
        ".*",
        "setp.eq.f(32|64) .*, 0[fd]0+$",
        "a zero below 0 as its own sign: what it is added to is no such zero",
    ),
    Excuse(
        "operands",
        "update momentum float32",
        "selp.f32 .*, 0f0+,",
        "no weight is NaN where all gradients, whose norm counts, are numbers",
    ),
    Excuse("constant", ".*", "add.s(32|64) .*, -?[0-9]+", "the end of a tail that no size here has"),
]
"""Another input would show it."""
