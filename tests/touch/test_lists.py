"""An optimizer and a penalty, added to a copy of the tree by exactly the files that CONTRIBUTING.md lists, pass the tests of the
others: bits, fixed points, brute force, Triton's interpreter. With any file left out they do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.touch.additions import ADDITIONS, OPTIMIZER, PENALTY, Addition, copy, listed

BASELINE = 'set(REGKERNELS_X86_64 OFF CACHE BOOL "as on a machine that has no other instruction sets")\n'
"""A toolchain for CMake: one compilation of the kernels instead of three."""

INTERPRETED = {"REGKERNELS_BACKEND": "triton", "TRITON_INTERPRET": "1"}
ADDED = "clipped or tilted"

Selection = tuple[list[str], str, dict[str, str]]
"""Files of tests, what `pytest -k` selects of them, and the environment."""

SELECTIONS: dict[str, Selection] = {
    "bits": (["tests/backends/test_bits.py", "tests/backends/test_penalised_bits.py"], ADDED, {}),
    "fixed points": (["tests/optim/test_fixed_points.py", "tests/optim/test_penalised_fixed_points.py"], "clipped", {}),
    "the penalty in other metrics": (["tests/optim/test_penalised_fixed_points.py"], "adamw or nesterov", {}),
    "brute force and definitions": (["tests/reference/test_operators.py", "tests/penalties/test_values.py"], ADDED, {}),
    "what the family promises": (["tests/reference/test_family.py"], "", {}),
    "interpreted": (
        [
            f"tests/{name}.py"
            for name in ("interpreted/test_matrix", "interpreted/test_penalties", "penalties/test_values")
        ],
        "clipped-prox-prox or clipped-decoupled-None or (tilted and (sgd or bit)) or (tilted and exact and triton)",
        INTERPRETED,
    ),
}
FEW: list[Selection] = [
    (
        [
            *("tests/reference/test_family.py", "tests/reference/test_operators.py", "tests/penalties/test_values.py"),
            *("tests/backends/test_penalised_bits.py", "tests/optim/test_fixed_points.py"),
        ],
        "every_penalty or (tilted and (test_special or bit_for_bit) and float32) or clipped-tilted or clipped-lasso",
        {},
    ),
    (
        [
            f"tests/{name}.py"
            for name in ("penalties/test_values", "interpreted/test_matrix", "interpreted/test_penalties")
        ],
        "(tilted and triton and bit_for_bit and float32) or clipped-prox-prox or (test_every_penalty and sgd-tilted)",
        INTERPRETED,
    ),
]
"""What notices, one for all, that a file was left out."""


def run(root: Path, selection: Selection) -> subprocess.CompletedProcess[str]:
    files, names, environment = selection
    kept = {name: value for name, value in os.environ.items() if name not in ("REGKERNELS_ISA", *INTERPRETED)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files, "-k", names],
        cwd=root,
        env={**kept, **environment, "PYTHONPATH": str(root), "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """The extension, beside the Python files of a copy."""
    toolchain = root / "build" / "baseline.cmake"
    toolchain.parent.mkdir(exist_ok=True)
    toolchain.write_text(BASELINE)
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=root,
        env={**os.environ, "CMAKE_TOOLCHAIN_FILE": str(toolchain), "REGKERNELS_REQUIRE_EXTENSION": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def extension_of(root: Path) -> Path:
    (path,) = (root / "regkernels").glob("_C*.so")
    return path


@pytest.fixture(scope="session")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy(tmp_path_factory.mktemp("extended"))
    built = build(root)
    assert built.returncode == 0, built.stdout[-4000:]
    return root


# --- the lists ---


def as_listed(file: str) -> str:
    """A new file is listed by the folder that it is in."""
    return file if (ROOT / file).exists() else f"{file.rpartition('/')[0]}/<name>.py"


@pytest.mark.parametrize("addition", ADDITIONS, ids=lambda addition: addition.section)
def test_the_list_is_what_is_touched(addition: Addition) -> None:
    assert listed(addition.section, "Source files") == [as_listed(file) for file in addition.files]
    assert len(addition.files) <= addition.most
    assert {edit.file for edit in addition.tests} <= set(listed(addition.section, "Tests"))


# --- the copy ---


def test_the_copy_is_what_is_tested(extended: Path) -> None:
    says = "import regkernels as r; print(r.__file__, r.info()['instruction_set'])"
    found = subprocess.run(
        [sys.executable, "-c", says],
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == [str(extended / "regkernels" / "__init__.py"), "baseline"], found.stderr


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_was_added_passes_the_tests_of_the_others(extended: Path, name: str) -> None:
    result = run(extended, SELECTIONS[name])
    assert result.returncode == 0, result.stdout[-6000:]


def test_types(extended: Path) -> None:
    """Also of the names that are found through star imports."""
    (extended / "use.py").write_text("import regkernels\n\nreveal_type(regkernels.tilted_penalty)\n")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "build/mypy", "use.py", "regkernels"],
        cwd=extended,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and "ratio: float" in found.stdout, found.stdout[-2000:]


# --- and with a file left out ---

LEFT_OUT = list(dict.fromkeys(file for addition in (OPTIMIZER, PENALTY) for file in addition.files))
FAILED = (1, 2, 4)
"""What pytest returns for a failure and for modules or a conftest that cannot be imported; not: 5, for nothing that is selected."""


def test_with_all_files_the_few_pass(extended: Path) -> None:
    for selection in FEW:
        result = run(extended, selection)
        assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.parametrize("file", [file for file in LEFT_OUT if not file.startswith("csrc/")])
def test_no_file_can_be_left_out(extended: Path, tmp_path: Path, file: str) -> None:
    root = copy(tmp_path, without=[file])
    shutil.copy2(extension_of(extended), root / "regkernels")
    # Of those of the device the interpreter tells first.
    nearest_first = sorted(FEW, key=lambda selection: bool(selection[2]) != ("triton" in file))
    assert any(run(root, selection).returncode in FAILED for selection in nearest_first)


@pytest.mark.parametrize("file", [file for file in LEFT_OUT if file.startswith("csrc/") and file != "csrc/lists.h"])
def test_no_file_of_c_plus_plus_can_be_left_out(tmp_path: Path, file: str) -> None:
    built = build(copy(tmp_path, without=[file]))
    assert built.returncode != 0 and "was not declared" in built.stdout, built.stdout[-2000:]


def test_a_name_that_is_missing_in_the_lists_of_c_plus_plus_is_found_at_load(tmp_path: Path) -> None:
    """The extension without the additions has the lists without them."""
    root = copy(tmp_path)
    shutil.copy2(extension_of(ROOT), root / "regkernels")
    says = "from regkernels.backends import extension; print(extension.missing_because)"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", says],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    for name in ("rules: csrc has 'still'", "penalties: csrc has 'huber'", "formulas: csrc has 'huber'"):
        assert name in found.stdout, found.stdout + found.stderr
