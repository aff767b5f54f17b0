"""Follows the instructions that a program executes as a rule: its whole blocks, without what is out of the ordinary."""

from __future__ import annotations

from typing import NamedTuple

from tests.triton.model.sass import Instruction

Path = list[Instruction]


class Paths(NamedTuple):
    """Holds what is executed once, and the loops that are executed for each block, in order."""

    once: Path
    loops: list[Path]


def split(code: Path) -> Paths:
    """Splits a kernel into its innermost loops and the rest.

    Where there are loops that load or store 16 bytes at a time, the others, which do what is left of a chunk, are left out. At a
    fork the path takes the side that moves more, 16 bytes at a time above all. Where none moves anything it goes straight on, but
    not to a call: divisions and roots have a function for operands out of the ordinary. What all threads of a program jump over
    together, once per block, is an option, and off.
    """
    places = {instruction.address: place for place, instruction in enumerate(code)}
    bodies = _innermost(code, places)
    once: Path = []
    loops: list[Path] = []
    place = 0
    ends = dict(bodies)
    while place < len(code):
        if place in ends:
            loops.append(_walk(code, places, place, ends[place] + 1))
            place = ends[place] + 1
            continue
        once.append(code[place])
        if code[place].name in ("EXIT", "RET") and not code[place].predicate:
            break
        place = _next(code, places, place, len(code))
    moving = [loop for loop in loops if any(instruction.bytes for instruction in loop)]
    wide = [loop for loop in moving if any(instruction.is_wide for instruction in loop)]
    return Paths(once, wide or moving)


def _innermost(code: Path, places: dict[int, int]) -> list[tuple[int, int]]:
    """Returns the first and last place of each loop in which there is no other."""
    loops = [
        (places[target], place)
        for place, instruction in enumerate(code)
        if (target := instruction.target) is not None and target in places and places[target] < place
    ]
    return [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


def _walk(code: Path, places: dict[int, int], place: int, end: int) -> Path:
    path = []
    apart = 0  # forks at which threads may have parted, and where they have not met again
    while place < end:
        instruction = code[place]
        path.append(instruction)
        apart += {"BSSY": 1, "BSYNC": -1}.get(instruction.name, 0)
        place = _next(code, places, place, end, options_are_off=not apart)
    return path


def _next(code: Path, places: dict[int, int], place: int, end: int, *, options_are_off: bool = False) -> int:
    """Returns the place of what is executed after an instruction, in code that ends before ``end``."""
    instruction = code[place]
    target = places.get(instruction.target) if instruction.target is not None else None
    if target is None or not place < target <= end:
        return place + 1
    if not instruction.is_conditional:
        return target
    straight, other = code[place + 1 : target], _other_side(code, places, target)
    if _moves(straight) != _moves(other):
        return place + 1 if _moves(straight) > _moves(other) else target
    return target if options_are_off or any(inner.name == "CALL" for inner in straight) else place + 1


def _other_side(code: Path, places: dict[int, int], target: int) -> Path:
    """Returns the else of an if: what the end of the other side jumps over."""
    last = code[target - 1]
    joined = places.get(last.target) if last.target is not None and not last.is_conditional else None
    return code[target:joined] if joined is not None and joined > target else []


def _moves(path: Path) -> tuple[int, int]:
    """Returns how many loads and stores are of 16 bytes, and how many there are."""
    return sum(instruction.is_wide for instruction in path), sum(instruction.bytes > 0 for instruction in path)
