"""docs/frameworks.md: every example runs as it stands and does what the page is about."""

from __future__ import annotations

import re

import pytest

from tests.integrations import documented
from tests.integrations.problem import zeros


@pytest.mark.parametrize("section", documented.examples())
def test_examples_leave_exact_zeros_in_matrices_and_none_in_biases(section: str) -> None:
    model = documented.run(section)["model"]
    assert zeros(model, 2) > 0
    assert zeros(model, 1) == 0


def test_links_lead_somewhere() -> None:
    text = re.sub(r"```.*?```", "", documented.DOCUMENT.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert targets
    for target in targets:
        assert (documented.DOCUMENT.parent / target).exists(), target


def test_each_framework_has_a_section_and_a_test() -> None:
    here = documented.DOCUMENT.parents[1] / "tests" / "integrations"
    named = set(
        re.findall(r"\(\.\./tests/integrations/(test_\w+\.py)\)", documented.DOCUMENT.read_text(encoding="utf-8"))
    )
    assert named == {path.name for path in here.glob("test_*.py")} - {"test_documentation.py"}
