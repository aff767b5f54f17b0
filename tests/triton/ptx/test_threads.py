"""What threads do together: in a warp, in shared memory, and in branches that part them."""

from __future__ import annotations

import numpy
import pytest

from tests.triton.ptx.machine import Unsupported
from tests.triton.ptx.programs import started


def test_values_are_shuffled() -> None:
    x, out = numpy.arange(100, 132, dtype="u4"), numpy.zeros((4, 32), "u4")
    lanes = numpy.arange(32)
    body = "mul.wide.u32 %rd9, %r0, 4; add.s64 %rd8, %rd0, %rd9; ld.global.b32 %r5, [%rd8]; add.s64 %rd8, %rd1, %rd9;"
    for k, how in enumerate(
        ("bfly.b32 %r6, %r5, 5, 31", "up.b32 %r6, %r5, 3, 0", "down.b32 %r6, %r5, 3, 31", "idx.b32 %r6, %r5, 9, 31")
    ):
        body += f"shfl.sync.{how}, -1; st.global.b32 [%rd8+{128 * k}], %r6;"
    started(body, x, out)
    expected = [
        lanes ^ 5,
        numpy.where(lanes < 3, lanes, lanes - 3),
        numpy.where(lanes > 28, lanes, lanes + 3),
        lanes * 0 + 9,
    ]
    assert (out == numpy.array(expected) + 100).all()


def test_a_warp_is_added_up_and_asked() -> None:
    out = numpy.zeros(64, "u4")
    body = """redux.sync.add.s32 %r5, %r0, -1; setp.lt.u32 %p1, %r0, 7; vote.sync.ballot.b32 %r6, %p1, -1;
        mul.wide.u32 %rd9, %r0, 8; add.s64 %rd8, %rd0, %rd9; st.global.v2.b32 [%rd8], {%r5, %r6};"""
    started(body, out)
    assert (out.reshape(32, 2) == [31 * 16, 127]).all()


@pytest.mark.parametrize("space", ["shared", "shared::cta"])
def test_shared_memory_is_the_programs_own(space: str) -> None:
    """Under both names; that of another program in a cluster is another instruction."""
    out = numpy.zeros(64, "u4")
    body = f"""mad.lo.s32 %r7, %r1, 32, %r0; shl.b32 %r5, %r0, 2; st.{space}.b32 [%r5], %r7; bar.sync 0;
        xor.b32 %r5, %r5, 124; ld.shared.b32 %r6, [%r5]; ld.{space}.b32 %r8, [%r5]; add.s32 %r6, %r6, %r8;
        mul.wide.u32 %rd9, %r7, 4; add.s64 %rd8, %rd0, %rd9; st.global.b32 [%rd8], %r6;"""
    started(body, out, programs=2)
    assert (out.reshape(2, 32) == 2 * numpy.arange(64).reshape(2, 32)[:, ::-1]).all()
    with pytest.raises(Unsupported, match="shared_cluster"):
        started("ld.shared::cluster.b32 %r5, [%r0];", out)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded(transposed: bool) -> None:
    """Row r of matrix m lies at 16 bytes times 8 m + r, and has elements 64 m + 8 r + c."""
    out = numpy.zeros((32, 4, 2), "u2")
    body = f"""shl.b32 %r5, %r0, 4; mul.lo.s32 %r6, %r0, 0x00080008; add.s32 %r6, %r6, 0x00010000;
        add.s32 %r7, %r6, 0x00020002; add.s32 %r8, %r7, 0x00020002; add.s32 %r9, %r8, 0x00020002;
        st.shared.v4.b32 [%r5], {{%r6, %r7, %r8, %r9}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r5];
        mul.wide.u32 %rd9, %r0, 16; add.s64 %rd8, %rd0, %rd9; st.global.v4.b32 [%rd8], {{%r10, %r11, %r12, %r13}};"""
    started(body, out)
    for thread in range(32):
        for matrix in range(4):
            for k in range(2):
                row, column = thread // 4, thread % 4 * 2 + k
                row, column = (column, row) if transposed else (row, column)
                assert out[thread, matrix, k] == 64 * matrix + 8 * row + column


def test_threads_that_branch_meet_again() -> None:
    """A loop whose length is the thread's number, in three programs side by side."""
    out = numpy.zeros(96, "u4")
    body = """mov.b32 %r5, 0; mov.b32 %r6, 0; setp.eq.b32 %p1, %r0, 0; @%p1 bra $L_end;
        $L_loop: add.s32 %r6, %r6, %r5; add.s32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, %r0; @%p2 bra $L_loop;
        $L_end: mad.lo.s32 %r7, %r1, 32, %r0; mul.wide.u32 %rd9, %r7, 4; add.s64 %rd8, %rd0, %rd9; st.global.b32 [%rd8], %r6;"""
    tally = started(body, out, programs=3)
    assert (out.reshape(3, 32) == [sum(range(thread)) for thread in range(32)]).all()
    assert tally.blocks.max() == 31
