"""docs/distributed.md: its code runs on two ranks, one block after the other, and its table is what the command prints."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

from regkernels.__main__ import main
from tests import ROOT
from tests.distributed import world

PAGE = ROOT / "docs" / "distributed.md"


def run(rank: int, blocks: list[str]) -> dict[str, Any]:
    """What the blocks print, and the weights with FSDP2 and with DDP, each after training on the same batches."""
    printed: list[tuple[Any, ...]] = []
    names: dict[str, Any] = {"print": lambda *values: printed.append(values)}
    found: dict[str, Any] = {"printed": printed}
    for block in blocks:
        exec(block, names)
        if "fully_shard(" in block:
            found["sharded"] = [param.full_tensor() for param in names["model"].parameters()]
        if "copies = " in block:
            found.setdefault("copies", []).append([param.detach() for param in names["copies"].parameters()])
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return world.run(2, run, blocks)


def test_the_code_trains_the_same_model_in_both_ways(ranks: list[dict[str, Any]]) -> None:
    for one, other in zip(*(found["sharded"] for found in ranks), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(ranks[0]["sharded"], ranks[0]["copies"][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, torch.zeros_like(one))


def test_the_code_prints_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["printed"] for found in ranks)
    assert len(first) == len(second) == 6
    for line, other in zip(first, second, strict=True):
        assert all(torch.equal(value, again) for value, again in zip(line, other, strict=True))
    differences = [float(difference) for (difference,) in first[1:5]]
    assert max(differences) < 1e-5
    (nonzeros,) = first[5]
    assert nonzeros.tolist() == [sum(int((param != 0).sum()) for param in ranks[0]["copies"][1])]


def test_the_projection_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--projection", "--markdown"]) == 0
    (part,) = re.findall(r"<!-- projection: begin -->\n(.*)<!-- projection: end -->", PAGE.read_text(), re.DOTALL)
    printed = capsys.readouterr().out
    assert part == printed, "put the output of `python -m regkernels bench --projection --markdown` between the marks"
