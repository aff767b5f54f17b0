"""Runs cases so that nothing ends the run: what cannot be measured is left out, with the reason."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from benchmarks import clocks, room
from benchmarks.case import Case, Contender, Scope
from benchmarks.measure import Plan, forget, measure
from benchmarks.record import LeftOut, Record, Row


def collect(names: Iterable[str], scope: Scope) -> tuple[list[Case], list[LeftOut]]:
    """Returns the cases of these suites. A suite that cannot even say what its cases are is left out."""
    cases: list[Case] = []
    left_out: list[LeftOut] = []
    for name in names:
        try:
            cases += importlib.import_module(f"benchmarks.bench_{name}").cases(scope)
        except Exception as error:
            left_out.append(LeftOut(name, "", "", reason(error)))
    return in_turn(cases) if scope.quick else cases, left_out


def in_turn(cases: list[Case]) -> list[Case]:
    """Takes the first of each suite, then the second of each: if time runs out, every question has had some answer."""
    places: dict[int, int] = {}
    seen: Counter[str] = Counter()
    for case in cases:
        places[id(case)] = seen[case.suite]
        seen[case.suite] += 1
    return sorted(cases, key=lambda case: places[id(case)])


def without(absent: Iterable[str], cases: Iterable[Case]) -> None:
    """Takes peers that are missing out of all cases, so that it need not be said again for each of them."""
    for case in cases:
        for name in absent:
            case.contenders.pop(name, None)


def run_case(case: Case, record: Record, plan: Plan | None, tick: Callable[[float], object]) -> list[Row]:
    """Puts rows, and what is left out, into the record; the rows are also returned."""

    def leave_out(peer: str, why: str) -> None:
        record.left_out.append(LeftOut(case.suite, case.name, peer, why))

    if plan is None:
        leave_out("", "the time of a quick run is over")
        return []
    rows: list[Row] = []
    try:
        free = room.available(record.device)
        if free is not None and case.memory > free:
            need, have = gibibytes(case.memory), gibibytes(free)
            leave_out("", f"too little memory: it takes about {need}, {have} are free")
        else:
            rows = _measured(case, _made(case, leave_out), record, plan, tick, leave_out)
            record.rows += rows
        case.contenders.clear()  # makers may share tensors
        forget()
    except (
        Exception
    ) as error:  # a GPU on which something has crashed answers everything with that, even giving back memory
        leave_out("", reason(error))
    if record.device == "cpu" and torch.get_num_threads() != record.threads:
        torch.set_num_threads(record.threads)  # a suite may have asked how threads help
    return rows


def _made(case: Case, leave_out: Callable[[str, str], None]) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {}
    for name, make in case.contenders.items():
        try:
            contenders[name] = make()
        except Exception as error:
            leave_out(name, reason(error))
    return contenders


def _measured(
    case: Case,
    contenders: dict[str, Contender],
    record: Record,
    plan: Plan,
    tick: Callable[[float], object],
    leave_out: Callable[[str, str], None],
) -> list[Row]:
    """Measures. Who crashes is taken out, and the others start again."""
    running = ""

    def announced(name: str, contender: Contender) -> Contender:
        # In `prepare`, which no clock sees.
        def prepare() -> None:
            nonlocal running
            running = name
            if contender.prepare is not None:
                contender.prepare()

        return Contender(contender.run, prepare, contender.bytes_moved, contender.keep)

    # The whole machine's at the start, but this one now: neighbours, and with them what is left of the memory's speed,
    # change within minutes.
    rates = record.streams_gb_per_s | (machine_streams(record.device, [case.stream]) if case.bytes_moved else {})
    while contenders:
        turns = {name: announced(name, contender) for name, contender in contenders.items()}
        try:
            return measure(case, turns, rates, plan, record.device, tick)
        except Exception as error:
            leave_out(running, reason(error))
        turns.clear()
        del contenders[running]
        forget()
    return []


def machine_streams(device: str, streams: Iterable[str] = clocks.STREAMS) -> dict[str, float]:
    rates = clocks.rates(device, room.elements_for_streams(device), streams)
    forget()
    return rates


def reason(error: Exception) -> str:
    """Says in a line why it failed. What a library says when it has no memory is long, and differs."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return f"too little memory: {text or type(error).__name__}"[:200]
    if type(error).__name__ == "Unsupported":
        return text
    return f"{type(error).__name__}: {text}"[:200].removesuffix(": ")


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
