"""The model of speed on machine code that is short enough to be counted by hand."""

from __future__ import annotations

import math

import pytest

from tests.triton.model import paths, sass
from tests.triton.model.chips import CACHE_NS, CHIPS, MEMORY_NS, Chip
from tests.triton.model.prediction import Work, predict, resident
from tests.triton.model.timeline import EXTRA, OPERANDS_READ, follow

CHIP = Chip("made up", 10, 2.0, 200 / 0.9, 64, 32, 100, fp64=64, conversions=16, fp32=64)
"""Copies 10 bytes per cycle and multiprocessor; a nanosecond has two cycles."""

MEMORY = 2 * MEMORY_NS


def code(*instructions: str | tuple[str, int, int | None, tuple[int, ...]], frees: int = 7) -> str:
    """Machine code as `cuobjdump` writes it: of each instruction its text, stall, the barrier it sets and those it waits for.

    ``frees``: the barrier that each of them frees when its operands were read.
    """
    lines = ["\t\tFunction : update"]
    for place, instruction in enumerate(instructions):
        text, stall, sets, waits = (instruction, 1, None, ()) if isinstance(instruction, str) else instruction
        mask = sum(1 << barrier for barrier in waits)
        control = stall | (7 if sets is None else sets) << 5 | frees << 8 | mask << 11
        lines.append(f"        /*{16 * place:04x}*/  {text} ;  /* 0x0000000000000000 */")
        lines.append(f"                              /* 0x{control << 41:016x} */")
    return "\n".join(lines)


LOOP = code(
    ("LDG.E.64 R8, desc[UR4][R2.64]", 1, 0, ()),
    ("IMAD R4, R8, 0x4, RZ", 4, None, (0,)),
    "@!P0 BRA 0xc0",
    ("LDG.E.128 R12, desc[UR4][R4.64]", 2, 1, ()),
    ("FADD R12, R12, R13", 5, None, (1,)),
    ("MUFU.RCP R14, R12", 1, 2, ()),
    "@P1 BRA 0x90",
    "CALL.REL.NOINC 0x100",
    "MOV R15, R20",
    ("DMUL R16, R14, R14", 2, None, (2,)),
    "STG.E.128 desc[UR4][R4.64], R12",
    "@P2 BRA 0x30",
    "@!P3 EXIT",
    "@P4 LDG.E R12, desc[UR4][R4.64]",
    "@P5 BRA 0xd0",
    "EXIT",
    "RET.REL.NODEC R2 0x0",
)
"""A loop of 16-byte loads with a division whose operands are seldom out of the ordinary; then one of masked loads; then a function."""


def test_fields_of_an_instruction() -> None:
    """Two lines of a real kernel: a load that frees barrier 3, and what waits for it."""
    text = """
        /*00d0*/                   LDG.E R2, desc[UR16][R6.64] ;                         /* 0x0000001006027981 */
                                                                                         /* 0x000ee4000c1e1900 */
        /*00e0*/              @!P0 IMAD.WIDE R2, R2, 0x90, RZ ;                          /* 0x0000009002027825 */
                                                                                         /* 0x008fc600078e02ff */
    """
    load, product = sass.parse(text)
    assert (load.address, load.opcode, load.unit, load.bytes, load.is_wide) == (0xD0, "LDG.E", "LOAD", 4, False)
    assert (load.stall, load.sets, load.frees, load.waits) == (2, 3, None, ())
    assert (product.predicate, product.unit, product.bytes) == ("@!P0", "INT", 0)
    assert (product.stall, product.sets, product.frees, product.waits) == (3, None, None, (3,))


def test_every_stall_and_barrier() -> None:
    (found,) = sass.parse(code(("STG.E desc[UR4][R2.64], R4", 15, 5, (0, 5)), frees=4))
    assert (found.stall, found.sets, found.frees, found.waits) == (15, 5, 4, (0, 5))


@pytest.mark.parametrize(
    ("text", "unit", "moved"),
    [
        ("LDG.E.64 R4, desc[UR4][R2.64]", "LOAD", 8),
        ("LDG.E.128 R4, desc[UR4][R2.64]", "LOAD", 16),
        ("LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]", "LOAD", 16),
        ("STG.E.U16 desc[UR4][R2.64], R4", "STORE", 2),
        ("F2F.F64.F32 R2, R4", "CVT", 0),
        ("F2FP.BF16.F32.PACK_AB R2, R4, R5", "FP32", 0),
        ("FSETP.NEU.AND P0, PT, R2, R4, PT", "INT", 0),
        ("FMNMX R2, R2, R4, !PT", "INT", 0),
        ("DSETP.NEU.AND P0, PT, R2, R4, PT", "FP64", 0),
        ("SHFL.BFLY PT, R2, R3, 0x1, 0x1f", "SMEM", 0),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "CTRL", 0),
        ("LOP3.LUT R2, R3, R4, RZ, 0x3c, !PT", "INT", 0),
    ],
)
def test_units(text: str, unit: str, moved: int) -> None:
    (found,) = sass.parse(code(text))
    assert (found.unit, found.bytes) == (unit, moved)
    assert found.is_of_64_bits == (unit == "CVT")


def test_the_path_is_the_ordinary_one() -> None:
    once, loops = paths.split(sass.parse(LOOP))
    assert [each.name for each in once] == ["LDG", "IMAD", "BRA", "EXIT", "EXIT"]
    assert [[each.name for each in loop] for loop in loops] == [
        ["LDG", "FADD", "MUFU", "BRA", "DMUL", "STG", "BRA"],
    ]


def test_threads_of_a_warp_stay_together() -> None:
    once, _ = paths.split(sass.parse(code("BRA.DIV UR5, 0x30", "FADD R1, R2, R3", "EXIT", "MOV R1, R2", "EXIT")))
    assert [each.name for each in once] == ["BRA", "FADD", "EXIT"]


@pytest.mark.parametrize(
    ("instructions", "names"),
    [
        (["BRA 0x30", "FADD R1", "FMUL R1", "EXIT"], "BRA EXIT"),
        (["@P0 BRA 0x30", "FADD R1", "FMUL R1", "EXIT"], "BRA FADD FMUL EXIT"),
        (["@P0 BRA 0x20", "LDG.E R1", "EXIT"], "BRA LDG EXIT"),
        (["BRA.U !UP0, 0x20", "LDG.E R1", "EXIT"], "BRA LDG EXIT"),
        # An else that moves 16 bytes at a time, and a then that moves 4, but twice.
        (["@P0 BRA 0x40", "LDG.E R1", "STG.E R1", "BRA 0x50", "LDG.E.128 R4", "EXIT"], "BRA LDG EXIT"),
    ],
)
def test_the_way_on_from_a_fork(instructions: list[str], names: str) -> None:
    once, loops = paths.split(sass.parse(code(*instructions)))
    assert [each.name for each in once] == names.split() and not loops


def test_what_a_loop_jumps_over_as_a_whole_is_an_option_and_off() -> None:
    """Where threads may part and meet again, some of them do what is there."""
    load, store, back = "LDG.E.128 R4, desc[UR4][R4.64]", "STG.E.128 desc[UR4][R4.64], R12", "@P1 BRA 0x0"
    for instructions, names in (
        ([load, "@P0 BRA 0x30", "FADD R1", store, back, "EXIT"], "LDG BRA STG BRA"),
        (
            [load, "BSSY B0, 0x50", "@P0 BRA 0x40", "FADD R1", "BSYNC B0", store, back],
            "LDG BSSY BRA FADD BSYNC STG BRA",
        ),
    ):
        _, (loop,) = paths.split(sass.parse(code(*instructions)))
        assert [each.name for each in loop] == names.split()


def test_loops_are_the_innermost() -> None:
    """And one that moves less than 16 bytes at a time is one, too, where there is no other."""
    nested = sass.parse(code("MOV R1", "IADD3 R2", "LDG.E R4", "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT"))
    once, (loop,) = paths.split(nested)
    assert [each.name for each in once] == ["MOV", "IADD3", "BRA", "EXIT"]
    assert [each.name for each in loop] == ["LDG", "BRA"]


def test_nobody_leaves_a_loop_halfway() -> None:
    leaving = code("LDG.E.128 R4", "@P1 BRA 0x50", "FADD R1", "@P0 BRA 0x0", "CALL.REL.NOINC 0x100", "EXIT")
    _, (loop,) = paths.split(sass.parse(leaving))
    assert [each.name for each in loop] == ["LDG", "BRA", "FADD", "BRA"]


def test_a_warp_waits_for_what_it_has_asked_for() -> None:
    _, (loop,) = paths.split(sass.parse(LOOP))
    cycles = MEMORY + 5 + 24 + 2 + 1 + 1 + EXTRA["BRA"]
    assert follow(loop, CHIP) == (cycles, 16)
    assert follow(loop, CHIP, rounds=3).cycles == cycles
    loads = sass.parse(code(("LDG.E.128 R4", 1, 0, ()), ("LDG.E.128 R8", 1, 0, ()), ("FADD R1", 1, None, (0,))))
    assert follow(loads, CHIP) == (1 + MEMORY + 1, 32)


@pytest.mark.parametrize(
    ("text", "cycles"),
    [
        ("LDG.E.128 R4", MEMORY),
        ("@P0 LDG.E R4", MEMORY),
        ("LDG.E R4", 2 * CACHE_NS),  # of a table
        ("MUFU.RCP R4", 24),
        ("F2F.F64.F32 R4", 28),
        ("LDS R4", 30),
        ("DADD R4", 16),
        ("S2R R4", 20),
    ],
)
def test_when_a_result_is_there(text: str, cycles: float) -> None:
    assert follow(sass.parse(code((text, 1, 3, ()), ("FADD R1", 1, None, (3,)))), CHIP).cycles == cycles + 1


def test_what_a_barrier_waits_for() -> None:
    """The latest of all that free it: a result, or that operands were read."""
    both = sass.parse(code(("LDG.E.128 R4", 1, 0, ()), ("MUFU.RCP R5", 1, 0, ()), ("FADD R1", 1, None, (0,))))
    assert follow(both, CHIP).cycles == MEMORY + 1
    store = sass.parse(code("STG.E.128 desc[UR4][R4.64], R12", ("MOV R12", 1, None, (2,)), frees=2))
    assert follow(store, CHIP).cycles == OPERANDS_READ + 1


def test_an_instruction_takes_a_cycle() -> None:
    """That of no stall, too, which is issued together with the next one on other chips."""
    assert follow(sass.parse(code(*[("FADD R1", 0, None, ())] * 7)), CHIP).cycles == 7


def test_copies_into_shared_memory_are_waited_for_some_rounds_later() -> None:
    copies = "LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x2"
    at_once, later = (sass.parse(code(*copies[:2], f"DEPBAR.LE SB0, 0x{missing}")) for missing in (0, 2))
    assert follow(at_once, CHIP, 4).cycles == pytest.approx(MEMORY + 1, abs=2)
    assert follow(later, CHIP, 40).cycles < MEMORY and follow(later, CHIP, 40).in_flight >= 2 * 16


def test_counts_per_element() -> None:
    """4 rounds of a program of 128 threads that have 4 elements each."""
    work = Work(elements=2048, read=4.0, written=4.0, rounds=4, warps=4, registers=32, shared=0)
    found = predict(LOOP, work, CHIP)
    expected = {"FP32": 1 / 4, "INT": 1 / 16, "FP64": 1 / 4, "MUFU": 1 / 4, "CVT": 0, "SMEM": 0}
    assert {unit: count for unit, count in found.instructions.items() if unit != "CTRL"} == expected
    assert found.total == (4 * 7 + 5) / 16
    assert found.warps == 64 and found.in_flight == 64 * 32 * 16


def test_bytes_that_are_asked_for_in_the_rounds_of_a_loop() -> None:
    """Nobody waits for them, so there are three of 16 bytes, by 64 warps."""
    found = predict(code(("LDG.E.128 R4", 1, 0, ()), "@P0 BRA 0x0", "EXIT"), Work(2048, 4, 4, 4, 4, 32, 0), CHIP)
    assert found.in_flight == 64 * 32 * 3 * 16


def test_a_prediction_by_hand() -> None:
    """A load that is waited for, and a store, by 4 warps for 512 elements, 16 times; then both in a loop of four rounds; then in one that
    the compiler has unrolled, of two."""
    load, store = ("LDG.E.128 R4", 1, 0, ()), ("STG.E.128 desc[UR4][R4.64], R12", 1, None, (0,))
    cycles, instructions = MEMORY + 2, 3
    once, loop = code(load, store, "EXIT"), code(load, store, "@P0 BRA 0x0", "EXIT")
    unrolled = code(load, store, load, store, "@P0 BRA 0x0", "EXIT")
    for text, rounds in (once, 1), (loop, 4), (unrolled, 4):
        found = predict(text, Work(512 * rounds, 4.0, 4.0, rounds, 4, 32, 0), CHIP)
        memory, latency, issue = 8 / 10, cycles / (16 * 512 * rounds), instructions / (4 * rounds) / 128
        assert found.percent == pytest.approx(100 * memory / math.sqrt(memory**2 + latency**2 + issue**2))
        if text is once:
            cycles, instructions = 4 * (MEMORY + 1 + 1 + EXTRA["BRA"]) + 1, 4 * 3 + 1
        else:
            cycles, instructions = 2 * (2 * (MEMORY + 1) + 1 + EXTRA["BRA"]) + 1, 2 * 5 + 1


@pytest.mark.parametrize(
    ("texts", "unit", "cycles"),
    [
        (["FADD R1"], "float32 unit", 48 / 64),
        (["IADD3 R1"], "integer unit", 48 / 64),
        (["DADD R1"], "float64 unit", 48 / 64),
        (["LDS R1"], "shared memory", 48 / 32),
        (["MUFU.RSQ R1"], "conversion unit", 48 / 16),
        (["F2I R1"], "conversion unit", 48 / 16),
        (["F2F.F64.F32 R1"], "conversion unit", 48 / 16),
        (["FADD R1", "IADD3 R1"], "issue", 50 / 128),
    ],
)
def test_cycles_of_units(texts: list[str], unit: str, cycles: float) -> None:
    """48 instructions of a thread for an element, a store and the end."""
    text = code(*texts * (48 // len(texts)), "STG.E.128 desc[UR4][R4.64], R12", "EXIT")
    found = predict(text, Work(128, 0.5, 0.5, 1, 4, 32, 0), CHIP)
    assert found.bound == unit
    assert found.percent == pytest.approx(100 * 0.1 / math.hypot(0.1, cycles), rel=0.01)


ROOTS = code(*["MUFU.RSQ R14, R12"] * 50, "STG.E.128 desc[UR4][R4.64], R12", "EXIT")


@pytest.mark.parametrize(
    ("text", "work", "bound"),
    [
        (LOOP, Work(4096, 100.0, 100.0, 1, 4, 32, 0), "memory"),
        (LOOP, Work(2048, 4.0, 4.0, 4, 4, 255, 60_000), "latency"),
        (ROOTS, Work(128, 4.0, 4.0, 1, 4, 32, 0), "conversion unit"),
    ],
)
def test_what_bounds_a_kernel(text: str, work: Work, bound: str) -> None:
    found = predict(text, work, CHIP)
    assert found.bound == bound
    assert (found.percent > 70) == (bound == "memory") and found.percent <= 100


def test_room_for_programs() -> None:
    assert resident(Work(1, 1, 1, 1, 4, 64, 0), CHIPS["sm_90"]) == 8  # registers
    assert resident(Work(1, 1, 1, 1, 4, 65, 0), CHIPS["sm_90"]) == 7
    assert resident(Work(1, 1, 1, 1, 4, 33, 0), CHIPS["sm_90"]) == 12  # registers of which 8 are given at a time
    assert resident(Work(1, 1, 1, 1, 32, 255, 0), CHIPS["sm_90"]) == 1  # which is compiled for this, and less than one
    assert resident(Work(1, 1, 1, 1, 4, 32, 0), CHIPS["sm_86"]) == 12  # warps
    assert resident(Work(1, 1, 1, 1, 1, 32, 0), CHIPS["sm_86"]) == 16  # programs
    assert resident(Work(1, 1, 1, 1, 1, 32, 49 * 1024), CHIPS["sm_86"]) == 2  # shared memory
    assert resident(Work(1, 1, 1, 1, 1, 32, 9 * 1024), CHIPS["sm_86"]) == 10  # of which each program costs a kilobyte


def test_bandwidth_of_a_multiprocessor() -> None:
    assert Chip("made up", 10, 2.0, 1000, 64, 32, 100, fp64=64, conversions=16).copied_bytes_per_cycle == 45


def test_slow_float64_takes_conversions_along() -> None:
    converting = code("F2F.F64.F32 R2, R4", "STG.E.128 desc[UR4][R4.64], R12", "EXIT")
    work = Work(128, 0.1, 0.1, 1, 4, 32, 0)
    by_chip = {name: predict(converting, work, chip) for name, chip in CHIPS.items()}
    slow = {name for name, found in by_chip.items() if found.bound == "float64 unit"}
    assert slow == {"sm_86", "sm_89", "sm_120"}
    with_roots = code(*["F2F.F64.F32 R2, R4"] * 2, *["MUFU.RSQ R14, R12"] * 10, "EXIT")  # 1 cycle there, and 10 / 16
    assert predict(with_roots, work, CHIPS["sm_86"]).bound == "float64 unit"
