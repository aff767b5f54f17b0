"""Says which blocks of a kernel were never run, and which predicates never seen true, or false; but for those that cannot be."""

from __future__ import annotations

import re

from tests.triton.ptx.excuses import Excuse, excuse
from tests.triton.ptx.machine import Code, Tally

# Why a predicate has the same outcome always. What only another outcome leads to need not be run either.
EXCUSES = [
    Excuse(
        "never False",
        ".*",
        "^(ld|st)\\.shared.* if mov.pred .*, -1",
        "true for this number of threads; LLVM leaves it there",
    ),
    Excuse(
        "never True",
        ".*",
        "^bra to (div|rem) if setp.ne.b64 .*, 0",
        "one of the numbers to divide is 2^32 or more: huge tensors",
    ),
    Excuse(
        "never False",
        ".*",
        "^bra to cvt if setp.ne.b64 .*, 0",
        "the same, where a branch is the other way around, as Triton 3.8 writes it",
    ),
    Excuse("never True", "group_.*", "^bra to .* if setp.[gl]e.s64", "no piece and no chunk is empty"),
    Excuse("never True", "(reduce|update) .*", "^bra to (bar|mov) if setp.lt.s32 .*, (512|1024)$", "no chunk is empty"),
    Excuse(
        "never False", "update .* in pairs", "^bra to .* if and.pred", "sums hold; `test_pairs` tries those that do not"
    ),
    Excuse("never True", "add_runs", "^bra to .* if setp.ge.s32", "no run is empty"),
    Excuse(
        "never False", "group_gradient", "^ld.global.b64 if setp.lt.s64", "of the groups of a tile there is the first"
    ),
    Excuse(
        "never False",
        "update_(groups|resident)",
        "^bra to mul if or.pred",
        "of this kind of groups one is tried, with these terms of a gradient",
    ),
    Excuse("never True", "add_totals", "^bra to .* if setp.lt.s32 .*, 1", "there is a launch"),
    Excuse("never True", "group_norms", "^bra to .* if setp.lt.s64 .*, 1", "every group has a piece"),
    Excuse(
        "never True",
        "update_(groups|resident)",
        "^bra to .* if setp.ge.s64",
        "a strip has groups, and groups have elements",
    ),
    Excuse(
        "never False",
        "update_(groups|resident)",
        "^bra to .* if setp.lt.s64 .*(1|%rd)$",
        "the same, the other way around",
    ),
    Excuse(
        "never True", "update_(groups|resident)", "^bra to .* if setp.[lg]t.s64", "more tiles than these groups have"
    ),
    Excuse(
        "never True", "update_groups.* (share|shrink|count) ", "^ld.global", "pieces of groups of millions of elements"
    ),
    Excuse(
        "never True",
        "update_(groups|resident)",
        "^bra to add if setp.(eq|neu).f",
        "of this kind of groups one is tried, with an lr",
    ),
    Excuse(
        "never False",
        "update_(groups|resident)",
        "^(bra to .* if not|st.global.* mov).pred",
        "the same: everything moves",
    ),
    Excuse(
        "never True", "update_resident .* of 1 wide", "^bra to add if not.pred", "the same, as Triton 3.8 writes it"
    ),
    Excuse("never True", "update_resident", "^st.global.* if and.pred .* mov.pred", "the same, where lr is 0"),
    Excuse(
        "never False", "update lion", "^bra to .* if not.pred", "has no metric, so nothing is divided by proximal decay"
    ),
    Excuse(
        "never True",
        "update still",
        "^bra to .* if setp",
        "an operator works on a fresh copy, which is aligned, with a step",
    ),
    Excuse(
        "never False",
        "update still",
        "^bra to .* if not.pred",
        "no proximal decay follows the operators of the penalties",
    ),
    Excuse("never False", "update still", "^bra to .* if setp", "the same, where a branch is the other way around"),
]


def described(code: Code, site: int) -> str:
    """Returns what a guard is before, where a jump leads to, and what its predicate is, without the numbers of registers."""
    instruction = code.sites[site]
    target = ""
    if instruction.words[0] == "bra":
        block = code.program.blocks[code.program.labels[str(instruction.operands[0])]]
        target = f" to {block[0].words[0]}" if block else ""
    written = [i.text for i in code.sites if i.operands and instruction.guard in str(i.operands[0]).split("|")]
    return re.sub(r"(%[a-z]+)\d+", r"\1", f"{instruction.opcode}{target} if {' or '.join(written)}")


def unseen(name: str, code: Code, tally: Tally) -> list[str]:
    """Returns what is missing in a kernel."""
    missing: list[str] = []
    reached, pending = {0}, [0]

    def excused(site: int, outcome: bool) -> bool:
        return excuse(EXCUSES, f"never {outcome}", name, described(code, site)) is not None

    while pending:
        number = pending.pop()
        block, last = code.program.blocks[number], code.last_sites[number]
        if block and not tally.blocks[number]:
            missing.append(f"{name}: never runs `{block[0].text}` and what follows")
        followed = {True, False}
        for site in range(last - len(block) + 1, last + 1):
            instruction = code.sites[site]
            if not instruction.guard:
                continue
            never = {bool(k) for k in (0, 1) if not tally.guards[site][k]} if tally.blocks[number] else set()
            # The predicate itself is what is excused, whether it is negated or not.
            unexplained = {outcome for outcome in never if not excused(site, outcome)}
            missing += [f"{name}: never {outcome}: {described(code, site)}" for outcome in sorted(unexplained)]
            if site == last and instruction.words[0] == "bra":
                followed -= never - unexplained
        for following in _after(code, number, followed):
            if following not in reached:
                reached.add(following)
                pending.append(following)
    return missing


def _after(code: Code, number: int, outcomes: set[bool]) -> set[int]:
    end = code.ends[number]
    if end.kind == "ret":
        return set()
    if end.kind != "bra":
        return {number + 1}
    if end.guard is None:
        return {end.target}
    return {end.target if outcome else number + 1 for outcome in outcomes}
