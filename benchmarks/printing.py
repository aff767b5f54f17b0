"""Hands out what of rich the benchmarks print with: on a bare machine, where nothing can be installed, that of the copy in pip."""

from __future__ import annotations

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:
    from pip._vendor.rich.console import Console
    from pip._vendor.rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from pip._vendor.rich.table import Table
    from pip._vendor.rich.text import Text

__all__ = ["BarColumn", "Console", "Progress", "Table", "Text", "TextColumn", "TimeRemainingColumn"]
