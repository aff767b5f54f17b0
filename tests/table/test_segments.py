"""Tables of segments: their layout is the extension's, pieces of them are theirs, and only what lies side by side is joined."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regkernels
from regkernels.table import segments
from regkernels.table.formats import ROUNDINGS
from tests.support import cases

pytestmark = pytest.mark.interpreted


def test_pieces_of_segments() -> None:
    wide, narrow = (
        regkernels.reference.kinds.Kind("adam", torch.float32),
        regkernels.reference.kinds.Kind("sgd", torch.bfloat16),
    )
    rows = []
    for kind, numel, addresses in (
        (wide, 10, [1000, 2000, 3000, 4000]),
        (narrow, 5, [500, 600]),
        (wide, 3, [70, 80, 90, 95]),
    ):
        row = dict.fromkeys(segments.FIELDS, 0) | {"numel": numel, "kind": kind.number}
        rows.append(list((row | dict(zip(segments.FIELDS, addresses, strict=False))).values()))
    runs = [segments.Runs(torch.tensor([8, 20, 40]), torch.tensor([2, 5, 3])), segments.Runs.one(0, 5)]
    pieces = segments.Pieces.of([*runs, segments.Runs(torch.tensor([1, 9]), torch.tensor([1, 2]))])
    columns = [*range(6), segments.NUMEL, segments.PLACE]
    first = [
        [1000, 2000, 3000, 4000, 0, 0, 2, 8],
        [1008, 2008, 3008, 4008, 0, 0, 5, 20],
        [1028, 2028, 3028, 4028, 0, 0, 3, 40],
    ]
    last = [[70, 80, 90, 95, 0, 0, 1, 1], [74, 84, 94, 99, 0, 0, 2, 9]]
    table, owners = pieces.cut(torch.tensor(rows), torch.tensor([True, True, True]))
    assert table[:, columns].tolist() == [*first, [500, 600, 0, 0, 0, 0, 5, 0], *last]
    assert owners.tolist() == [0, 0, 0, 1, 2, 2]
    table, owners = pieces.cut(torch.tensor(rows), torch.tensor([True, False, True]))
    assert table[:, columns].tolist() == [*first, *last]
    assert owners.tolist() == [0, 0, 0, 2, 2]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[int]], list[bool]]:
    """Segments of which many begin where the one before ends; and some where only one buffer does not."""
    number = st.integers(0, 2)
    likely = st.integers(0, 9).map(bool)
    kinds = st.builds(
        regkernels.reference.kinds.Kind,
        st.sampled_from(list(regkernels.reference.RULES)),
        st.sampled_from(cases.DTYPES),
        st.sampled_from(ROUNDINGS),
        st.booleans(),
        st.sampled_from(regkernels.reference.family.PENALTIES),
    )
    table: list[list[int]] = []
    for _ in range(draw(st.integers(0, 6))):
        before = dict(zip(segments.FIELDS, table[-1], strict=True)) if table else {}
        kind = before["kind"] if before and draw(likely) else draw(kinds).number
        values = dict.fromkeys(segments.FIELDS, 0) | {"kind": kind, "numel": draw(number)}
        for name in ("row", "total", "stream", "place", "gap", "groups", "inner"):
            values[name] = before[name] if before and draw(likely) else draw(number)
        widths = dict(cases.buffers(before.get("kind", kind)))
        for column, (name, _) in enumerate(cases.buffers(kind)):
            if before and name in widths and before[name] and draw(likely):
                values[name] = before[name] + widths[name] * before["numel"]
            else:
                values[name] = 1000 * (column + 1) + draw(number)
        table.append(list(values.values()))
    return table, draw(st.lists(likely, min_size=len(table), max_size=len(table)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables())
def test_merge_joins_what_lies_side_by_side_and_nothing_else(case: tuple[list[list[int]], list[bool]]) -> None:
    table, may_follow = case
    given_table = torch.tensor(table, dtype=torch.int64).reshape(len(table), len(segments.FIELDS))
    before = given_table.clone()
    merged = segments.merge(given_table, torch.tensor(may_follow, dtype=torch.bool))
    assert merged.tolist() == cases.joined(table, may_follow)
    assert torch.equal(given_table, before)
    assert merged.is_contiguous()
