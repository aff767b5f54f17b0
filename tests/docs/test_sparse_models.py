"""examples/diabetes_path.py and examples/sparse_logistic.py: real data, the solutions that scikit-learn finds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from tests import ROOT

EXAMPLES = ROOT / "examples"
MODULES = ("diabetes_path", "sparse_logistic", "path_picture")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Programs import what lies beside them; nothing of that stays for other tests."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]


def test_the_lasso_of_diabetes_is_scikit_learns(modules: dict[str, ModuleType]) -> None:
    findings = modules["diabetes_path"].find(n_lambdas=30, folds=3)
    ours = findings.path.weights.numpy()
    numpy.testing.assert_allclose(ours, findings.theirs, rtol=0, atol=1e-6)
    assert numpy.array_equal(ours != 0, findings.theirs != 0)
    numpy.testing.assert_allclose(findings.errors, findings.their_errors, rtol=1e-6)
    assert findings.chosen == pytest.approx(findings.alpha, rel=1e-9)
    assert findings.path.lambdas[-1] < findings.chosen < findings.path.lambdas[0]
    assert findings.path.converged.all()


def test_the_logistic_regression_of_breast_cancer_is_scikit_learns(modules: dict[str, ModuleType]) -> None:
    findings = modules["sparse_logistic"].find(n_lambdas=10, folds=2, comparisons=2)
    ours = findings.path.weights[findings.compared].numpy()
    numpy.testing.assert_allclose(ours, findings.theirs, rtol=0, atol=1e-5)
    assert numpy.array_equal(ours != 0, findings.theirs != 0)
    assert (ours != 0).sum(1)[-1] > 10 and findings.path.nonzeros[0] == 0
    assert findings.accuracy.max() > 0.95 and findings.accuracy[0] < 0.65
    assert findings.path.converged.all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("diabetes_path", ["--folds=2"]), ("sparse_logistic", ["--folds=2", "--comparisons=1"])],
)
def test_the_programs_report_and_draw(
    name: str, options: list[str], modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "path.png"
    modules[name].main(["--lambdas=5", f"--picture={picture}", *options])
    assert "all converged: True" in (printed := capsys.readouterr().out) and "the same zeros: True" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
