"""Who computes: forcing a backend, and a package that has to do without its extension."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regkernels
from regkernels import FlatParameters, backends, optim
from regkernels.__main__ import main
from regkernels.backends import cpu, eager, extension
from tests import ROOT
from tests.support.training import OPTIMIZERS, network, ours, train

compiled = pytest.mark.skipif(extension.C is None, reason="the extension is not built")


def results() -> dict[str, Tensor]:
    """One of everything, small: names that start with "sum" are sums, the others must agree in every bit."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {}
    for name in OPTIMIZERS:
        for flat in (False, True):
            model = network(torch.float32)
            model[2].to(torch.bfloat16)
            model[1] = nn.Sequential(nn.Tanh(), nn.Identity())
            model[1][1].forward = lambda x: x.to(torch.bfloat16)
            if flat:
                FlatParameters(model)
            optimizer = ours(name, model.parameters(), l1=1e-3, weight_decay_mode="prox", stats=True)
            train(optimizer, model, range(3))
            found |= {f"{name} {flat} {key}": param.detach() for key, param in model.named_parameters()}
            found |= {f"sum {name} {flat} {key}": value for key, value in optimizer.stats._asdict().items()}
    x = torch.randn(1001, requires_grad=True)
    penalty = regkernels.elastic_net_penalty([x], 0.5, 0.25)
    penalty.backward()
    found |= {"sum penalty": penalty.detach(), "penalty's gradient": x.grad}
    found["threshold"] = regkernels.prox.soft_threshold(x.detach(), 0.5)
    return found


def assert_same_results(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if key.startswith("sum"):
            torch.testing.assert_close(value, b[key], rtol=1e-6, atol=0)
        else:
            assert torch.equal(value, b[key]), key


def python(code: str, *arguments: str, module: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code``, or ``-m regkernels``, in a fresh interpreter that finds the tests."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("REGKERNELS_")}
    return subprocess.run(
        [sys.executable, "-W", "always", *(["-m", "regkernels"] if module else ["-c", code]), *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- choosing ---


@compiled
def test_use() -> None:
    outside = backends.name()
    with backends.use("reference"):
        assert backends.name() == "reference" and regkernels.info()["backend"] == "reference"
        assert backends.backend_for(torch.device("cpu")) is eager
        with backends.use("cpp"):
            assert backends.name() == "cpp" and backends.backend_for(torch.device("cpu")) is cpu
        assert backends.name() == "reference"
        with pytest.raises(KeyError), backends.use("cpp"):
            raise KeyError
        assert backends.name() == "reference"
    assert backends.name() == outside


@pytest.mark.parametrize("name", ["cuda", "", "CPP", "reference "])
def test_use_of_an_unknown_backend(name: str) -> None:
    before = backends.name()
    message = f"backend must be one of 'reference', 'cpp', 'triton', got '{name}'"
    with pytest.raises(ValueError, match=message), backends.use(name):
        pass
    assert backends.name() == before


@compiled
def test_the_environment_chooses_and_use_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("reference", "reference"), ("cpp", "cpp"), ("", "cpp")):
        monkeypatch.setenv("REGKERNELS_BACKEND", value)
        assert backends.name() == regkernels.info()["backend"] == expected
    monkeypatch.setenv("REGKERNELS_BACKEND", "reference")
    with backends.use("cpp"):
        assert backends.name() == "cpp"


def test_a_wrong_value_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is changed."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = optim.Adam([p])
    monkeypatch.setenv("REGKERNELS_BACKEND", "cuda")
    for call in (optimizer.step, regkernels.info, lambda: regkernels.l1_penalty(p, 1.0)):
        with pytest.raises(
            ValueError, match="REGKERNELS_BACKEND must be one of 'reference', 'cpp', 'triton', got 'cuda'"
        ):
            call()
    assert torch.equal(p, torch.ones(3)) and not optimizer.state
    monkeypatch.delenv("REGKERNELS_BACKEND")
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


@compiled
def test_backends_can_take_turns() -> None:
    """Within one training; the results are those of either alone."""
    runs = []
    for turns in (["cpp"], ["reference"], ["cpp", "reference"]):
        torch.manual_seed(0)
        model = network(torch.float32)
        optimizer = ours("adamw", model.parameters(), l1=1e-3)
        for step in range(6):
            with backends.use(turns[step % len(turns)]):
                train(optimizer, model, [step])
        runs.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_other_devices_are_named() -> None:
    with pytest.raises(RuntimeError, match="CPU, CUDA and ROCm tensors, got a tensor on device 'meta'; move the model"):
        backends.backend_for(torch.device("meta"))


@compiled
def test_the_instruction_set_is_chosen_by_the_environment() -> None:
    ran = python("import regkernels; print(regkernels.info()['instruction_set'])", REGKERNELS_ISA="baseline")
    assert ran.stdout.strip() == "baseline", ran.stderr


@compiled
def test_a_wrong_instruction_set_in_the_environment() -> None:
    code = """
import regkernels, torch
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
for call in (regkernels.info, regkernels.optim.SGD([p], lr=1.0).step):
    try: call()
    except ValueError as error: print(error)
assert torch.equal(p, torch.ones(3))
"""
    ran = python(code, REGKERNELS_ISA="mmx")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 2
    for line in ran.stdout.splitlines():
        assert "'mmx'" in line and all(name in line for name in extension.C.available_isas())
        assert "REGKERNELS_ISA" in line, "the error must say where the value comes from"


def test_an_old_torch_is_refused_when_the_package_is_imported() -> None:
    old = python("import torch; torch.__version__ = '2.7.1+cu126'; import regkernels")
    assert old.returncode == 1 and "circular" not in old.stderr
    assert old.stderr.splitlines()[-1] == (
        "ImportError: regkernels needs torch 2.11 or newer, and this is torch 2.7.1+cu126: pip install 'torch>=2.11'"
    )
    assert python("import torch; torch.__version__ = '2.11.0a0+git1'; import regkernels").returncode == 0


# --- without the extension ---

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "regkernels._C":
            raise {error}
sys.meta_path.insert(0, Blocked())
"""
BUILD_FAILED = """
from pathlib import Path
exists, read_text = Path.exists, Path.read_text
def named(path): return path.name == "_build_failure.txt"
Path.exists = lambda path: named(path) or exists(path)
NOTE = "kernels.cpp:7: error: no such thing\\nHow to fix it: install a C++17 compiler; pip install --force-reinstall\\n"
Path.read_text = lambda path, *a, **k: NOTE if named(path) else read_text(path, *a, **k)
"""
STALE = """
import sys, types
sys.modules["regkernels._C"] = types.SimpleNamespace({layout})
"""
WITHOUT: dict[str, tuple[str, str]] = {
    "cannot be loaded": (
        BLOCK.format(error='ImportError("libstdc++.so.6: no such file")'),
        "libstdc++.so.6: no such file",
    ),
    "is not there": (BLOCK.format(error="ModuleNotFoundError('not found', name=name)"), ""),
    "could not be built": (BLOCK.format(error='ImportError("none")') + BUILD_FAILED, "kernels.cpp:7: error: no such"),
    "is of other sources": (
        STALE.format(layout='layout=lambda: {"segment": ["weight"], "hyper": [], "sums": []}'),
        "it was built from other sources",
    ),
    "knows less": (STALE.format(layout="layout=lambda: {}"), "it was built from other sources"),
    "says nothing": (STALE.format(layout=""), ""),
}
ASK = """
import regkernels, regkernels.backends, regkernels.__main__
try: regkernels.backends.use("cpp").__enter__()
except RuntimeError as error: print("asked by force:", error)
regkernels.__main__.main(["info"])
"""
USE = """
import sys, torch
from tests.backends.test_choice import results
torch.save(results(), sys.argv[1])
"""


@pytest.mark.parametrize("case", WITHOUT)
def test_without_the_extension(case: str) -> None:
    """One warning that says why and what to do, then silence; whoever forces the kernels is told the same."""
    prepare, reason = WITHOUT[case]
    program = prepare + ASK
    ran = python(program)
    assert ran.returncode == 0, ran.stderr
    line = program.splitlines().index("import regkernels, regkernels.backends, regkernels.__main__") + 1
    assert f"<string>:{line}: RuntimeWarning" in ran.stderr, "the user's line"
    assert ran.stderr.count("RuntimeWarning") == 1, ran.stderr
    assert "RuntimeWarning: regkernels runs without its compiled kernels" in ran.stderr
    assert f"Reason: {reason}" in ran.stderr
    assert ran.stderr.count("install a C++17 compiler") == ran.stderr.count("pip install --force-reinstall") == 1
    assert "circular import" not in ran.stderr, "not the reason"
    forced, *info = ran.stdout.splitlines()
    assert forced.startswith("asked by force: ") and reason in forced and "pip install" in ran.stdout
    table = dict(line.split("  ", maxsplit=1) for line in info if "  " in line)
    table = {key: value.strip() for key, value in table.items()}
    assert table["backend"] == table["backends"] == "reference"
    assert table["extension"].startswith(f"missing: {reason}")
    assert table["instruction set"] == table["instruction sets"] == "none"


def test_results_without_the_extension(tmp_path: Path) -> None:
    ran = python(WITHOUT["cannot be loaded"][0] + USE, str(tmp_path / "results.pt"))
    assert ran.returncode == 0 and ran.stderr.count("RuntimeWarning") == 1, ran.stderr
    assert_same_results(results(), torch.load(tmp_path / "results.pt", weights_only=True))


def test_both_backends_give_the_same_results() -> None:
    with backends.use("reference"):
        reference = results()
    assert_same_results(results(), reference)


# --- python -m regkernels info ---


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_info_is_printed(backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cpp" and extension.C is None:
        pytest.skip("the extension is not built")
    monkeypatch.setenv("REGKERNELS_BACKEND", backend)
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert err == "" and len(out.splitlines()) == len(regkernels.info())
    assert lines["backend"] == backend and lines["version"] == regkernels.__version__
    assert lines["torch"] == torch.__version__
    assert all(key.replace("_", " ") in out for key in regkernels.info())


def test_a_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inof"])
    message = capsys.readouterr().err
    assert "inof" in message and "info" in message


def test_the_module_runs() -> None:
    ran = python("", "info", module=True)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()] == [key.split("_")[0] for key in regkernels.info()]


def test_info_has_plain_values() -> None:
    for key, value in regkernels.info().items():
        assert isinstance(key, str) and isinstance(value, (str, int, bool, list, type(None)))
        assert type(value) is not torch.torch_version.TorchVersion, "torch.load(weights_only=True) would refuse it"
