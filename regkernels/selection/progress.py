"""Shows a progress bar for paths that take long."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from time import monotonic

_LONG = 2.0  # seconds


def shown(strengths: list[float], progress: bool | None) -> Iterator[float]:
    """Yields the strengths, with a bar on standard error, where that is a terminal, which goes away in the end.

    Args:
        strengths: what to go through.
        progress: True shows it, False does not; None: when two seconds have passed. Without rich there is none.
    """
    if progress is False or importlib.util.find_spec("rich") is None:
        yield from strengths
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from strengths
        return
    begin, seen = monotonic(), bool(progress)
    with Progress(console=console, transient=True) as display:
        task = display.add_task("", total=len(strengths), visible=seen)
        for strength in strengths:
            seen = seen or monotonic() - begin > _LONG
            display.update(task, description=f"lambda = {strength:.3g}", visible=seen)
            yield strength
            display.advance(task)
