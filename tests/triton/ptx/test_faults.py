"""What ends a run: each thing that no device defines, and nothing that is defined."""

from __future__ import annotations

import numpy
import pytest

from tests.triton.ptx.machine import Fault, Region, Unsupported, run, translated
from tests.triton.ptx.programs import entry, started

MINE = "mul.wide.u32 %rd9, %r0, 4; add.s64 %rd8, %rd0, %rd9;"
"""The address of each thread's own word in %rd8."""


def words(count: int = 32) -> numpy.ndarray:
    return numpy.zeros(count, "u4")


def test_an_unknown_instruction_is_named() -> None:
    for text in (
        "ex2.approx.f32 %r5, %r0;",
        "add.rn.ftz.f32 %r5, %r0, %r0;",
        "ld.global.nc.b32 %r5, [%rd0];",
        "bar.sync 1;",
    ):
        with pytest.raises(Unsupported, match=text.split()[0].replace(".", r"\.") if text[0] != "b" else "barrier"):
            started(f"ret; {text}", words())


@pytest.mark.parametrize(
    "access", ["ld.global.b32 %r5, [%rd8+4];", "st.global.b32 [%rd8+4], %r0;", "ld.global.b32 %r5, [%rd8+-8];"]
)
def test_nothing_beyond_an_array_is_touched(access: str) -> None:
    with pytest.raises(
        Fault, match=r"(read|write) out of bounds: .*thread (31|0) of program 0, 4 bytes at .* of array 0"
    ):
        started(MINE + access, words())


def test_the_last_byte_counts() -> None:
    array = words()
    region = Region("short", array.ctypes.data, 127, writable=True)
    with pytest.raises(Fault, match="thread 31 of program 0"):
        run(translated(entry(MINE + "st.global.b32 [%rd8], %r0;")), (1,), [numpy.uint64(array.ctypes.data)], [region])


def test_a_vector_is_aligned_as_a_whole() -> None:
    eight = "mul.wide.u32 %rd9, %r0, 8; add.s64 %rd8, %rd0, %rd9;"
    started(eight + "ld.global.v2.b32 {%r5, %r6}, [%rd8];", words(96))
    with pytest.raises(Fault, match="misaligned"):
        started(eight + "ld.global.v2.b32 {%r5, %r6}, [%rd8+4];", words(96))


def test_permissions_are_kept() -> None:
    array = words()
    for access, what in (("ld.global.b32 %r5, [%rd8];", "read"), ("st.global.b32 [%rd8], %r0;", "written")):
        region = Region.of("x", array, readable=what != "read", writable=what != "written")
        with pytest.raises(Fault, match=f"not to be {what}"):
            run(translated(entry(MINE + access)), (1,), [numpy.uint64(array.ctypes.data)], [region])


def test_what_was_never_written_is_not_read() -> None:
    array = words()
    known = numpy.ones(128, bool)
    known[42] = False
    region = Region.of("x", array, writable=True, initialised=known)
    read = MINE + "ld.global.b32 %r5, [%rd8];"
    with pytest.raises(Fault, match=r"never written: .*thread 10 "):
        run(translated(entry(read)), (1,), [numpy.uint64(array.ctypes.data)], [region])
    run(
        translated(entry(MINE + "st.global.b32 [%rd8], %r0;" + read)), (1,), [numpy.uint64(array.ctypes.data)], [region]
    )
    with pytest.raises(Fault, match="never written"):
        started("shl.b32 %r5, %r0, 2; ld.shared.b32 %r6, [%r5];")


def test_registers_are_poisoned() -> None:
    array = words()
    started(MINE + "st.global.b32 [%rd8], %r17;", array)
    assert (array == 0xDEADBEEF).all()


NEXT = "add.s32 %r5, %r0, 1; and.b32 %r5, %r5, 31; shl.b32 %r6, %r0, 2; shl.b32 %r5, %r5, 2;"
"""The places of a thread's word and its neighbour's in shared memory, in %r6 and %r5."""


@pytest.mark.parametrize(
    "first", ["st.shared.b32 [%r6], %r0; bar.sync 0; ld.shared.b32 %r7, [%r6];", "st.shared.b32 [%r6], %r0;"]
)
def test_threads_that_no_barrier_parts_race(first: str) -> None:
    """One writes what another has read or written."""
    second = "st.shared.b32 [%r5], %r0;"
    started(NEXT + first + "bar.sync 0;" + second)
    with pytest.raises(Fault, match=r"race with a (read|write)"):
        started(NEXT + first + second)


def test_a_read_of_what_another_thread_has_just_written_races() -> None:
    write, read = "st.shared.b32 [%r6], %r0;", "ld.shared.b32 %r7, [%r5];"
    started(NEXT + write + "bar.sync 0;" + read)
    with pytest.raises(Fault, match="race with a write"):
        started(NEXT + write + read)


def test_nothing_orders_programs() -> None:
    write, read = "st.global.b32 [%rd8], %r0;", "ld.global.b32 %r5, [%rd8];"
    barriers = "bar.sync 0; bar.sync 0;"
    started(MINE + write + barriers + read, words(), programs=1)
    for body in (write, f"setp.eq.b32 %p1, %r1, 0; @%p1 {write} {barriers} @!%p1 {read}", f"{read} {barriers} {write}"):
        with pytest.raises(Fault, match=r"race|at once"):
            started(MINE + body, words(), programs=2)
    with pytest.raises(Fault, match="race"):  # of programs that do not run side by side
        started(MINE + f"setp.eq.b32 %p1, %r1, 40; @%p1 {write} @!%p1 {read}", words(), programs=41)


def test_many_may_read_but_then_none_may_write() -> None:
    read, write = "ld.shared.b32 %r7, [0];", "setp.eq.b32 %p1, %r0, 3; @%p1 st.shared.b32 [0], %r0;"
    started(f"{write} bar.sync 0; {read} bar.sync 0; {write}")
    with pytest.raises(Fault, match="race with a read"):
        started(f"{write} bar.sync 0; {read} {write}")


def test_threads_may_store_one_value_into_one_place_of_shared_memory() -> None:
    started("st.shared.b32 [0], %r1;", programs=3)
    with pytest.raises(Fault, match="different values"):
        started("st.shared.b32 [0], %r0;")
    with pytest.raises(Fault, match="at once"):
        started("st.global.b32 [%rd0], %r1;", words())


def test_barriers_wait_for_all() -> None:
    lower = "setp.lt.u32 %p1, %r0, 16; @%p1 bra $L_low;"
    with pytest.raises(Fault, match="different barriers"):
        started(f"{lower} bar.sync 0; bra $L_end; $L_low: bar.sync 0; $L_end:")
    with pytest.raises(Fault, match="have ended"):
        started(f"{lower} bar.sync 0; $L_low:")


def test_threads_of_a_warp_are_there_together() -> None:
    shuffle = "shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;"
    with pytest.raises(Fault, match="not the threads of the warp"):
        started(f"setp.lt.u32 %p1, %r0, 16; @%p1 bra $L_end; {shuffle} $L_end:")
    with pytest.raises(Fault, match="elsewhere"):
        started(f"setp.gt.u32 %p1, %r0, 2; @%p1 bra $L_end; {shuffle.replace('-1', '7').replace(' 1,', ' 4,')} $L_end:")


def test_shared_memory_has_an_end() -> None:
    with pytest.raises(Fault, match="out of bounds"):
        started("shl.b32 %r5, %r0, 2; st.shared.b32 [%r5], %r0;", shared=124)
    with pytest.raises(Fault, match="misaligned"):
        started("shl.b32 %r5, %r0, 1; st.shared.b32 [%r5], %r0;")


def test_programs_that_do_not_end_are_ended() -> None:
    with pytest.raises(Fault, match="does not end"):
        started("$L_loop: bra $L_loop;", limit=100)


def test_a_launch_is_as_the_text_says() -> None:
    array = words()
    pointer, region = numpy.uint64(array.ctypes.data), Region.of("x", array)
    with pytest.raises(Fault, match="launched with 64 threads"):
        run(translated(entry("")), (1,), [pointer], [region], threads=64)
    with pytest.raises(Fault, match="has 8 bytes, and is given 4"):
        run(translated(entry("")), (1,), [numpy.uint32(1)], [region])
    with pytest.raises(ValueError, match="overlap"):
        run(translated(entry("")), (1,), [pointer], [region, region._replace(name="y", size=4)])
