"""Knows the names that the command line takes: of suites, lists of shapes, and peers with what they come from."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from benchmarks import peers, shapes
from benchmarks.peers.peer import silent


class UnknownName(Exception):
    """Says which names there are."""


def chosen(kind: str, wanted: Iterable[str], valid: Iterable[str]) -> tuple[str, ...]:
    """Returns ``wanted`` as ``valid`` spells it, each once, in the order of ``valid``.

    A text may hold several names with commas between them, although names may have commas themselves; what stands before
    a name's own comma means all that begin so.
    """
    valid = tuple(valid)
    found: set[str] = set()
    unknown: list[str] = []
    for text in wanted:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        while parts:
            for length in range(len(parts), 0, -1):
                matches = _matches(", ".join(parts[:length]).lower(), valid)
                if matches:
                    break
            else:
                unknown.append(repr(parts[0]))
            found.update(matches)
            del parts[:length]
    if unknown:
        raise UnknownName(f"unknown {kind} {', '.join(unknown)}; there are: {'; '.join(valid)}")
    return tuple(name for name in valid if name in found)


def _matches(text: str, valid: Iterable[str]) -> list[str]:
    exact = [name for name in valid if name.lower() == text]
    return exact or [name for name in valid if name.lower().startswith(f"{text},")]


def question(suite: str) -> str:
    """Returns what a suite asks: the first line of its module."""
    try:
        return (importlib.import_module(f"benchmarks.bench_{suite}").__doc__ or "").strip().partition("\n")[0]
    except Exception as error:
        return f"cannot be imported: {error}"


def shapes_in_words(name: str) -> str:
    of = shapes.LISTS[name]()
    return f"{len(of):,} tensors, {shapes.elements(of):,} elements"


def all_peers() -> tuple[str, ...]:
    """Names all peers, of steps and of penalties; some do both."""
    return tuple(dict.fromkeys([*peers.PEERS, *peers.PENALTIES]))


def find_peers() -> tuple[dict[str, str], dict[str, str]]:
    """Returns versions of those that are there, and why the others are not."""
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name, peer in peers.PEERS.items():
        try:
            with silent():
                versions[name] = peer.find()
        except (Exception, SystemExit) as error:
            absent[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return versions, absent


def is_ours(peer: str) -> bool:
    return peer.startswith("regkernels")
