"""What is said where the Triton kernels cannot be used. Nothing here needs a GPU, or is changed by the attempt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from regkernels import backends, optim
from regkernels.backends import gpu

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _look_again() -> Iterator[None]:
    gpu.missing_because.cache_clear()
    yield
    gpu.missing_because.cache_clear()


class Absent:
    """An import hook that hides Triton."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name=name)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(
        RuntimeError, match=r"'cuda:0' needs the Triton kernels, but Triton cannot be imported.*pip install"
    ):
        backends.backend_for(CUDA)
    with pytest.raises(RuntimeError, match=r"backend='triton' needs .* cannot be imported"), backends.use("triton"):
        pass
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optim.SGD([parameter], lr=1.0).step()
    assert not parameter.any(), "tensors on the CPU need no Triton"


@pytest.mark.parametrize("version", ["3.5.1", "2.1.0", "", "unknown"])
def test_an_unsupported_triton(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    with pytest.raises(
        RuntimeError, match=rf"Triton {version} is not supported; 3\.6 is the oldest that is: upgrade torch"
    ):
        backends.backend_for(CUDA)


def test_rocm_needs_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(RuntimeError, match=r"Triton 3\.6\.0 is not supported on ROCm; 3\.7 is the oldest"):
        backends.backend_for(CUDA)


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.10.0+git1a2b3c", "4.0"])
def test_a_supported_triton(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    assert gpu.missing_because() is None


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_backend_for_cpu_tensors_is_not_ignored_on_a_device(backend: str) -> None:
    with (
        backends.use(backend),
        pytest.raises(RuntimeError, match=f"'{backend}' was asked for.*CPU tensors only.*'cuda:0'"),
    ):
        backends.backend_for(CUDA)


def test_cpu_tensors_without_the_interpreter() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = optim.Adam([parameter])
    with backends.use("triton"), pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before Python starts"):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(3)) and not optimizer.state


def test_a_dtype_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    gpu.check_dtype(CUDA, torch.float16, "parameter 0")
    with pytest.raises(
        RuntimeError, match=r"parameter 2 is bfloat16, which Tesla T4 \(compute capability 7.5\) lacks.*Use float16"
    ):
        gpu.check_dtype(CUDA, torch.bfloat16, "parameter 2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    gpu.check_dtype(CUDA, torch.bfloat16, "parameter 2")


def test_a_group_on_several_devices() -> None:
    here, there = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))
    here.grad = torch.ones(3)
    optimizer = optim.AdamW([{"params": [nn.Parameter(torch.ones(1))]}, {"params": [here, there]}])
    message = "param group 1 has parameters on several devices: parameter 0 on 'cpu', parameter 1 on 'meta'; make a param group"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(here, torch.ones(3)) and not optimizer.state


def test_groups_on_devices_of_their_own_are_checked_before_any_is_changed() -> None:
    here, there = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))
    here.grad, there.grad = torch.ones(3), torch.ones(3, device="meta")
    optimizer = optim.AdamW([{"params": [here]}, {"params": [there]}])
    with pytest.raises(RuntimeError, match="got a tensor on device 'meta'"):
        optimizer.step()
    assert torch.equal(here, torch.ones(3)) and not optimizer.state
