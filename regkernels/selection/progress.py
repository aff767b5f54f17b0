"""Shows progress bars: for paths that take long, and for the epochs of a cross-validation."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

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


class Show(Protocol):
    """Shows one more epoch, and how many models go on."""

    def __call__(self, running: int = 0) -> None: ...


@contextmanager
def epochs_shown(wanted: bool, what: str, epochs: int) -> Iterator[Show]:
    """Shows a bar of epochs on standard error.

    Raises:
        ImportError: without rich, where it is wanted.
    """
    if not wanted:
        yield lambda running=0: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError(f"verbose=True needs rich ({error}): pip install rich") from error
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=epochs)

        def show(running: int = 0) -> None:
            bar.update(task, advance=1, description=f"{what}, {running} not stopped" if running else what)

        yield show
