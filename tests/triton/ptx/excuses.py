"""Why what is looked for is missing in some kernels, and need not be there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Excuse(NamedTuple):
    """Holds for what three regular expressions name. Written down for outcomes of guards that are never seen, and for mutants that
    are not caught."""

    kind: str  # of what is missing
    kernels: str
    text: str  # what is found anywhere in the instruction
    why: str
    reads: str = ""  # what is found in one of the instructions that have written what it reads


def excuse(excuses: Iterable[Excuse], kind: str, kernel: str, text: str, reads: str = "") -> Excuse | None:
    """Returns the first that fits."""
    return next(
        (
            each
            for each in excuses
            if re.fullmatch(each.kind, kind)
            and re.match(each.kernels, kernel)
            and re.search(each.text, text)
            and re.search(each.reads, reads, re.MULTILINE)
        ),
        None,
    )
