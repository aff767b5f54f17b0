"""Writes tables, as plain text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, last: bool = False) -> str:
    """Makes columns as wide as their widest cell, the first ``left`` ones aligned left; ``last`` draws a line above the last row."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    rule = "-" * len(line(["-" * width for width in widths]))
    lines = [line(header), rule, *map(line, rows)]
    if last:
        lines.insert(-1, rule)
    return "\n".join(lines)


def as_html(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        aligned = (
            f'<{tag} style="text-align: {"left" if index < left else "right"}">{html.escape(cell)}</{tag}>'
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(aligned)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"
