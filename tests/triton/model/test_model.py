"""The model of speed on machine code that is short enough to be counted by hand."""

from __future__ import annotations

import pytest

from tests.triton.model import paths, sass
from tests.triton.model.chips import CHIPS, MEMORY_NS, Chip
from tests.triton.model.prediction import Work, predict, resident
from tests.triton.model.timeline import EXTRA, follow

CHIP = Chip("made up", 10, 1.0, 100 / 0.9, 64, 32, 100, fp64=64, conversions=16)
"""Copies 10 bytes per cycle and multiprocessor; a load takes as many cycles as nanoseconds."""


def code(*instructions: str | tuple[str, int, int | None, tuple[int, ...]]) -> str:
    """Machine code as `cuobjdump` writes it: of each instruction its text, stall, the barrier it sets and those it waits for."""
    lines = ["\t\tFunction : update"]
    for place, instruction in enumerate(instructions):
        text, stall, sets, waits = (instruction, 1, None, ()) if isinstance(instruction, str) else instruction
        mask = sum(1 << barrier for barrier in waits)
        control = stall | (7 if sets is None else sets) << 5 | 7 << 8 | mask << 11
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


@pytest.mark.parametrize(
    ("text", "unit", "moved"),
    [
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


def test_the_path_is_the_ordinary_one() -> None:
    once, loops = paths.split(sass.parse(LOOP))
    assert [each.name for each in once] == ["LDG", "IMAD", "BRA", "EXIT", "EXIT"]
    assert [[each.name for each in loop] for loop in loops] == [
        ["LDG", "FADD", "MUFU", "BRA", "DMUL", "STG", "BRA"],
    ]


def test_threads_of_a_warp_stay_together() -> None:
    once, _ = paths.split(sass.parse(code("BRA.DIV UR5, 0x30", "FADD R1, R2, R3", "EXIT", "MOV R1, R2", "EXIT")))
    assert [each.name for each in once] == ["BRA", "FADD", "EXIT"]


def test_a_warp_waits_for_what_it_has_asked_for() -> None:
    _, (loop,) = paths.split(sass.parse(LOOP))
    cycles = MEMORY_NS + 5 + 24 + 2 + 1 + 1 + EXTRA["BRA"]
    assert follow(loop, CHIP) == (cycles, 16)
    assert follow(loop, CHIP, rounds=3).cycles == cycles
    loads = sass.parse(code(("LDG.E.128 R4", 1, 0, ()), ("LDG.E.128 R8", 1, 0, ()), ("FADD R1", 1, None, (0,))))
    assert follow(loads, CHIP) == (1 + MEMORY_NS + 1, 32)


def test_copies_into_shared_memory_are_waited_for_some_rounds_later() -> None:
    copies = "LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x2"
    at_once, later = (sass.parse(code(*copies[:2], f"DEPBAR.LE SB0, 0x{missing}")) for missing in (0, 2))
    assert follow(at_once, CHIP, 4).cycles == pytest.approx(MEMORY_NS + 1, abs=2)
    assert follow(later, CHIP, 40).cycles < MEMORY_NS and follow(later, CHIP, 40).in_flight >= 2 * 16


def test_counts_per_element() -> None:
    """4 rounds of a program of 128 threads that have 4 elements each."""
    work = Work(elements=2048, read=4.0, written=4.0, rounds=4, warps=4, registers=32, shared=0)
    found = predict(LOOP, work, CHIP)
    expected = {"FP32": 1 / 4, "INT": 1 / 16, "FP64": 1 / 4, "MUFU": 1 / 4, "CVT": 0, "SMEM": 0}
    assert {unit: count for unit, count in found.instructions.items() if unit != "CTRL"} == expected
    assert found.total == (4 * 7 + 5) / 16
    assert found.warps == 64 and found.in_flight == 64 * 32 * 16


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
    assert resident(Work(1, 1, 1, 1, 4, 32, 0), CHIPS["sm_86"]) == 12  # warps
    assert resident(Work(1, 1, 1, 1, 1, 32, 0), CHIPS["sm_86"]) == 16  # programs
    assert resident(Work(1, 1, 1, 1, 1, 32, 49 * 1024), CHIPS["sm_86"]) == 2  # shared memory


def test_slow_float64_takes_conversions_along() -> None:
    converting = code("F2F.F64.F32 R2, R4", "STG.E.128 desc[UR4][R4.64], R12", "EXIT")
    work = Work(128, 0.1, 0.1, 1, 4, 32, 0)
    by_chip = {name: predict(converting, work, chip) for name, chip in CHIPS.items()}
    slow = {name for name, found in by_chip.items() if found.bound == "float64 unit"}
    assert slow == {"sm_86", "sm_89", "sm_120"}
