"""What the tests on a device run under.

Where there is no GPU, those that call nothing of CUDA run on CPU tensors through Triton's interpreter, with smaller
numbers: ``REGKERNELS_TEST_DEVICE=cpu REGKERNELS_BACKEND=triton TRITON_INTERPRET=1 pytest tests/gpu``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from regkernels.backends import gpu
from tests.support import engine

if gpu.missing_because() is not None:  # what says so is tested elsewhere
    collect_ignore_glob = ["test_*.py"]

DEVICE = torch.device(os.environ.get("REGKERNELS_TEST_DEVICE", "cuda"))


def pytest_runtest_setup() -> None:
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch.cuda.is_available() is false here")


@pytest.fixture(autouse=True)
def _after_each_test() -> Iterator[None]:
    yield
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()  # an error on the device belongs to the test that caused it


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for a test that calls streams, graphs or the like."""
    if device.type != "cuda":
        pytest.skip("calls what only CUDA has")
    return device


@pytest.fixture
def setting(device: torch.device) -> engine.Setting:
    return engine.Setting("triton", device=str(device))


@pytest.fixture
def interpreted(device: torch.device) -> bool:
    """Whether everything takes some thousand times longer."""
    return device.type == "cpu"
