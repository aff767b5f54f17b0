"""Kernels with a mistake in them, which the machine or a comparison of what they compute has to catch: tests of the checker.

``python -m tests.triton.ptx.mutants [count]`` tries up to so many of each kind in each kernel.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.triton.kernel import Kernel
from tests.triton.ptx import tails
from tests.triton.ptx.device import Launch, RunningDevice, running
from tests.triton.ptx.excuses import excuse
from tests.triton.ptx.machine import Code, Fault, Tally, Unsupported, translated
from tests.triton.ptx.machine.parsing import ENDS, Instruction
from tests.triton.ptx.survivors import HARMLESS, UNSEEN
from tests.triton.ptx.uses import USES, Use


class Mutant(NamedTuple):
    kind: str
    site: int
    instruction: Instruction | None
    text: str  # what stands in that place, if it is right
    reads: str = ""  # the instructions that have written what it reads, a line each


# --- what may be wrong ---


def barriers(code: Code) -> Iterator[Mutant]:
    """One of two that stand side by side is enough; around copies into shared memory none is needed, as here each thread reads what it
    has itself copied."""
    meeting = [
        site
        for site, instruction in enumerate(code.sites)
        if {"bar", "cp", "shared", "ldmatrix", "stmatrix"} & {*instruction.words}
    ]
    for place, site in enumerate(meeting):
        beside = {code.sites[other].words[0] for other in meeting[max(place - 1, 0) : place + 2] if other != site}
        if code.sites[site].words[0] == "bar" and not beside & {"bar", "cp"}:
            yield Mutant("barrier", site, None, code.sites[site].text)


def guards(code: Code) -> Iterator[Mutant]:
    """Of loads and stores; not those that are constant."""
    constant = {i.operands[0] for i in code.sites if i.opcode == "mov.pred" and i.operands[1] == "-1"}
    for site, instruction in enumerate(code.sites):
        if instruction.guard and instruction.words[0] in ("ld", "st") and instruction.guard not in constant:
            yield Mutant("guard", site, instruction._replace(guard=None), instruction.text)


_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT = re.compile(r"0[fFdD]([0-9a-fA-F]+)")


def _other(constant: str) -> str:
    """Returns the next integer; a number that is larger by an eighth, or 1 instead of 0."""
    if found := _FLOAT.fullmatch(constant):
        size = len(found[1])
        if not int(found[1], 16):
            return f"{constant[:2]}{'3F800000' if size == 8 else '3FF0000000000000'}"
        bits = int(found[1], 16) + (1 << (20 if size == 8 else 49))
        return f"{constant[:2]}{bits % (1 << 4 * size):0{size}X}"
    return str(int(constant.rstrip("U"), 0) + 1)


def _is_overwritten(code: Code, site: int) -> bool:
    """Tells whether the next instruction that names a register writes it, as one does after inline assembly has set it to 0."""
    register = str(code.sites[site].operands[0])
    for after in code.sites[site + 1 :]:
        if after.words[0] in ENDS:
            return False
        if re.search(rf"{register}\b", after.text):
            return after.guard is None and not re.search(rf"{register}\b.*{register}\b|\[.*{register}\b", after.text)
    return False


def constants(code: Code) -> Iterator[Mutant]:
    """Not those that are never looked at, nor those that say which threads of a warp take part."""
    for site, instruction in enumerate(code.sites):
        name = instruction.words[0]
        if name in (*ENDS, "shfl", "redux") or (name == "mov" and _is_overwritten(code, site)):
            continue
        for place, operand in enumerate(instruction.operands):
            if isinstance(operand, str) and (_FLOAT.fullmatch(operand) or _INTEGER.fullmatch(operand)):
                changed = (*instruction.operands[:place], _other(operand), *instruction.operands[place + 1 :])
                yield Mutant("constant", site, instruction._replace(operands=changed), instruction.text)
                break


def operands(code: Code) -> Iterator[Mutant]:
    """Of instructions to which their order matters."""
    for site, instruction in enumerate(code.sites):
        words, given = instruction.words, instruction.operands
        ordered = words[0] in ("sub", "div", "rem", "selp") or (
            words[0] == "setp" and words[1][:2] in ("lt", "le", "gt", "ge")
        )
        if ordered and given[1] != given[2]:
            swapped = (given[0], given[2], given[1], *given[3:])
            yield Mutant("operands", site, instruction._replace(operands=swapped), instruction.text)


KINDS: list[Callable[[Code], Iterator[Mutant]]] = [barriers, guards, constants, operands]


def _writers(code: Code, site: int) -> str:
    """Returns the last instruction before ``site`` that writes each of the registers which it reads, a line each."""
    found = []
    for operand in code.sites[site].operands[1:]:
        writes = (i.text for i in reversed(code.sites[:site]) if i.operands and i.operands[0] == operand)
        found.append(next(writes, ""))
    return "\n".join(found)


def sample(found: Iterable[Mutant], count: int) -> list[Mutant]:
    """Returns some, evenly spaced."""
    listed = list(found)
    return [listed[k * len(listed) // count] for k in range(count)] if len(listed) > count else listed


# --- whether it is caught ---


class MutatingDevice(RunningDevice):
    """Runs each launch once more for each mutant that was not caught yet, on the same memory, and compares what is written.

    Attributes:
        count: how many mutants of each kind there are of a kernel.
        alive: those that nothing has caught yet, by text.
        tried: how many there were, by kind.
    """

    count = 2

    def __init__(self, architecture: str) -> None:
        super().__init__(architecture)
        self.alive: dict[str, list[Mutant]] = {}
        self.tried: Counter[str] = Counter()

    def run(self, launch: Launch) -> Tally:
        code = translated(launch.text)
        written = [region.bytes for region in launch.regions if region.writable]
        before = [memory.copy() for memory in written]
        tally = super().run(launch)
        after = [memory.copy() for memory in written]
        if launch.text not in self.alive:
            self.alive[launch.text] = [m for kind in KINDS for m in sample(kind(code), self.count)]
            self.tried.update(mutant.kind for mutant in self.alive[launch.text])

        def is_caught(mutant: Mutant) -> bool:
            for memory, values in zip(written, before, strict=True):
                memory[:] = values
            try:
                launch.of(code.replaced(mutant.site, mutant.instruction), limit=4 * int(tally.blocks.sum()) + 100)
            except (Fault, Unsupported):
                return True
            return any((memory != values).any() for memory, values in zip(written, after, strict=True))

        self.alive[launch.text] = [mutant for mutant in self.alive[launch.text] if not is_caught(mutant)]
        for memory, values in zip(written, after, strict=True):
            memory[:] = values
        return tally

    def survivors(self) -> list[tuple[str, Mutant]]:
        """Returns those that were run and not caught, with the names of their kernels."""
        names = {kernel.asm["ptx"]: Kernel(self.architecture, kernel).name for kernel in self.compiled()}
        found = []
        for text, alive in self.alive.items():
            blocks, code = self.tallies[text].blocks, translated(text)
            for mutant in alive:
                number = next(k for k, last in enumerate(code.last_sites) if mutant.site <= last)
                if blocks[number]:
                    found.append((names[text], mutant._replace(reads=_writers(code, mutant.site))))
                else:
                    self.tried[mutant.kind] -= 1  # `coverage` says why it cannot be run
        return found


NAMES = (
    "step momentum float32 with sums",
    "step momentum float32 clipped",
    "step sgd float32 by groups",
    "attach_prox SGD float64",
    "prox.soft_threshold float32",
    "l0_penalty",
    "l1_penalty with weights",
    "l1_penalty with weights at NaN",
    "group_l1_penalty of 0",
    "group_l1_penalty of 1",
    "group_l1_penalty of runs of every length",
    "elastic_net_penalty float64",
    "elastic_net_penalty float64 at NaN",
    "penalty float64 1.0 0.2",
    "penalty float64 0.3 1.0",
    "square_sum",
    "total float32",
    "add_runs",
    "add_totals",
)
"""Uses that launch every function, which small tensors do in tenths of a second."""


class Outcome(NamedTuple):
    tried: int  # without those that are no mistakes
    survivors: list[tuple[str, Mutant, str | None]]  # with the names of their kernels, and why

    @property
    def unexplained(self) -> list[tuple[str, Mutant, str | None]]:
        return [survivor for survivor in self.survivors if survivor[2] is None]

    @property
    def caught(self) -> float:
        return 1 - len(self.survivors) / self.tried


def outcome(uses: Sequence[Use], count: int) -> Outcome:
    """Tries up to ``count`` mutants of each kind in each kernel that is launched."""
    with running("sm_90", MutatingDevice) as device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device.count = count
        for use in uses:
            use.run()
        survivors = device.survivors()
    mistakes = []
    for name, mutant in survivors:
        if excuse(HARMLESS, mutant.kind, name, mutant.text, mutant.reads) is None:
            why = excuse(UNSEEN, mutant.kind, name, mutant.text, mutant.reads)
            mistakes.append((name, mutant, None if why is None else why.why))
    return Outcome(device.tried.total() - len(survivors) + len(mistakes), mistakes)


def main(count: int = 20) -> None:
    found = outcome([use for use in USES if use.name in NAMES] + tails.USES, count)
    for name, mutant, why in found.survivors:
        print(f"not caught: {mutant.kind} of `{mutant.text}` in {name}: {why or 'nobody knows why'}")
    print(f"{found.tried - len(found.survivors)} of {found.tried} caught, {found.caught:.1%}")
    sys.exit(bool(found.unexplained) or found.caught < 0.95)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
