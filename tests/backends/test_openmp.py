"""The extension's threads are torch's: the runtime is looked up where torch has it, and may be missing."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regkernels import optim
from regkernels.backends import extension, openmp
from tests.backends.test_choice import python

pytestmark = pytest.mark.skipif(extension.C is None, reason="the extension is not built")

Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Parallel = ctypes.CFUNCTYPE(None, Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
Number = ctypes.CFUNCTYPE(ctypes.c_int)


def address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


class Pretended:
    """A runtime whose threads run one after another, the last one first."""

    def __init__(self, team: int) -> None:
        self.team, self.thread, self.regions = team, 0, 0

        def parallel(body: Callable[[int], None], data: int, threads: int, flags: int) -> None:
            assert (threads, flags) == (0, 0)
            self.regions += 1
            for thread in reversed(range(self.team)):
                self.thread = thread
                body(data)

        # Kept: C++ calls them for as long as this lives.
        self.functions = (
            Parallel(parallel),
            Number(lambda: 64),
            Number(lambda: self.team),
            Number(lambda: self.thread),
        )
        self.addresses = (*map(address, self.functions), 0)


@pytest.fixture
def runtime() -> Iterator[None]:
    """Gives torch's runtime back after a test."""
    yield
    functions = openmp.functions()
    assert functions is not None
    extension.C.use_runtime(*functions)


def stepped() -> tuple[Tensor, float]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size)) for size in (70_000, 3, 50_000, 16_385, 1)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = optim.AdamW(params, lr=1e-2, l1=1e-2, stats=True)
    optimizer.step()
    return torch.cat([param.detach() for param in params]), optimizer.stats.l1_norm


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("team", [1, 2, 3, 7, 64])
def test_every_team_does_all_of_the_work_once(team: int) -> None:
    """The runtime decides how many threads there are; results are those of one thread in every bit, sums included."""
    extension.C.use_runtime(0, 0, 0, 0, 0)
    assert extension.C.num_threads() == 1
    alone = stepped()
    pretended = Pretended(team)
    extension.C.use_runtime(*pretended.addresses)
    shared = stepped()
    assert pretended.regions > 0
    assert torch.equal(alone[0], shared[0]) and alone[1] == shared[1]


def test_the_functions_are_those_of_the_runtime_that_torch_sets() -> None:
    functions = openmp.functions()
    assert functions is not None and all(functions)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert ctypes.CFUNCTYPE(ctypes.c_int)(functions[1])() == extension.C.num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and asks ldd")
def test_no_second_runtime_comes_in() -> None:
    """Neither is the extension linked to a runtime, nor is another one loaded than before it."""
    needed = subprocess.run(["ldd", extension.C.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed and not re.search("omp|mp5", needed), needed
    loaded = """
from pathlib import Path
import re, torch
def runtimes():
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if re.search(r"/lib(g|i)?omp", line)}
before = runtimes()
import regkernels
assert before and runtimes() == before, (before, runtimes())
"""
    ran = python(loaded)
    assert ran.returncode == 0, ran.stderr


def test_without_a_runtime_one_thread_works_and_says_so(tmp_path: Path) -> None:
    hidden = f"""
import sys, torch
torch.__file__ = {str(tmp_path / "torch" / "__init__.py")!r}
from tests.backends.test_choice import results
from regkernels.backends import extension
assert extension.C.num_threads() == 1
from tests.backends.test_openmp import stepped
torch.set_num_threads(4)
assert extension.C.num_threads() == 1
torch.save(stepped()[0], sys.argv[1])
"""
    ran = python(hidden, str(tmp_path / "weights.pt"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("RuntimeWarning: regkernels steps on one thread: no OpenMP runtime was found") == 1
    assert torch.equal(torch.load(tmp_path / "weights.pt", weights_only=True), stepped()[0])
