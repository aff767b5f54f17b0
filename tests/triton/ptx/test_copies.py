"""Copies into shared memory that go on while threads do something else: what arrives, and what nobody may touch until then."""

from __future__ import annotations

import numpy
import pytest

from tests.triton.ptx.machine import Fault
from tests.triton.ptx.programs import started

PLACES = "mul.wide.u32 %rd9, %r0, 16; add.s64 %rd8, %rd0, %rd9; add.s64 %rd7, %rd1, %rd9; shl.b32 %r5, %r0, 4;"
COPY = "cp.async.cg.shared.global [%r5], [%rd8], 0x10, %r6; cp.async.commit_group;"
WAIT = "cp.async.wait_group 0;"
KEEP = "ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r7]; st.global.v4.b32 [%rd7], {%r10, %r11, %r12, %r13};"
OWN = PLACES + "mov.b32 %r7, %r5; mov.b32 %r6, 16;"
NEIGHBOURS = PLACES + "xor.b32 %r7, %r5, 16; mov.b32 %r6, 16;"


def copied(body: str) -> numpy.ndarray:
    numbers, out = numpy.arange(128, dtype="u4").reshape(32, 4), numpy.zeros((32, 4), "u4")
    started(body, numbers, out)
    return out


def test_what_was_waited_for_has_arrived() -> None:
    assert (copied(OWN + COPY + WAIT + KEEP).ravel() == numpy.arange(128)).all()
    assert (copied(NEIGHBOURS + COPY + WAIT + "bar.sync 0;" + KEEP)[::2].ravel()[:4] == [4, 5, 6, 7]).all()


def test_what_is_not_filled_is_zero() -> None:
    """And is not read: the last thread's number may be elsewhere."""
    body = OWN + "setp.lt.u32 %p1, %r0, 31; selp.b32 %r6, 16, 0, %p1; @!%p1 mov.b64 %rd8, 0;" + COPY + WAIT + KEEP
    assert (copied(body)[30:] == [[120, 121, 122, 123], [0, 0, 0, 0]]).all()
    with pytest.raises(Fault, match="out of bounds"):
        copied(body.replace("16, 0, %p1", "16, 16, %p1"))
    with pytest.raises(Fault, match="part of a copy"):
        copied(body.replace("16, 0, %p1", "16, 8, %p1"))


def test_until_then_there_is_nothing_to_read() -> None:
    with pytest.raises(Fault, match="never written"):
        copied(OWN + COPY + KEEP)
    with pytest.raises(Fault, match="never written"):  # the latest group is still on its way
        copied(OWN + COPY + WAIT.replace("0", "1") + KEEP)
    with pytest.raises(Fault, match="never written"):  # what belongs to no group is not waited for
        copied(OWN + COPY.replace("cp.async.commit_group;", "") + WAIT + KEEP)


def test_groups_arrive_in_order() -> None:
    second = "add.s32 %r8, %r5, 512; cp.async.ca.shared.global [%r8], [%rd8], 0x10; cp.async.commit_group;"
    assert copied(OWN + COPY + second + WAIT.replace("0", "1") + KEEP).any()
    with pytest.raises(Fault, match="never written"):
        copied(OWN + COPY + second + WAIT.replace("0", "1") + "mov.b32 %r7, %r8;" + KEEP)


def test_others_need_a_barrier_after_it() -> None:
    with pytest.raises(Fault, match="race with a write"):
        copied(NEIGHBOURS + COPY + WAIT + KEEP)
    with pytest.raises(Fault, match="race with a write"):  # a barrier before the wait orders nothing
        copied(NEIGHBOURS + COPY + "bar.sync 0;" + WAIT + KEEP)


def test_nobody_may_have_read_there_since_the_last_barrier() -> None:
    first = OWN + "st.shared.b32 [%r5], %r0; bar.sync 0; xor.b32 %r8, %r5, 16; ld.shared.b32 %r9, [%r8];"
    copied(first + "bar.sync 0;" + COPY + WAIT + KEEP)
    with pytest.raises(Fault, match="race with a read"):
        copied(first + COPY + WAIT + KEEP)
