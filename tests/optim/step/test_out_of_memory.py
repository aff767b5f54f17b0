"""A step for which there is not enough memory has not begun: no weight has moved, and the next one goes on as if nothing had been."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch
from torch import nn

from regkernels import backends, optim
from tests.support.children import in_child

ROOM = 2 << 20
"""Less than the numbers of the large groups take, and more than everything else."""


def _trained() -> tuple[list[nn.Parameter], optim.Adam]:
    """Two steps of a small parameter and of one whose groups, if there are any, are worked on by several tasks, so many that
    their numbers take megabytes."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(66, 20000))]
    groups = [{"params": params[:1]}, {"params": params[1:], "group_dim": 1}]
    optimizer = optim.Adam(groups, lr=0.01, stats=True)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(2):
        optimizer.step()
    return params, optimizer


@pytest.mark.skipif(backends.name() != "cpp", reason="the reference allocates as it goes")
@pytest.mark.parametrize("threads", [1, 2])
def test_without_memory_no_weight_moves(threads: int) -> None:
    torch.set_num_threads(threads)

    def step_without_memory() -> None:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        (params, optimizer), (others, other) = _trained(), _trained()
        for own in (optimizer, other):
            own.param_groups[1]["group_l1"] = 0.01
        before = [param.detach().clone() for param in params]
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
        while libc.malloc(2 * ROOM):  # what the process has left over
            pass
        try:
            optimizer.step()
            failed = False
        except MemoryError:
            failed = True
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert failed, "there was enough memory: the test shows nothing"
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        assert all(optimizer.state[param]["step"] == 2 for param in params)
        optimizer.step()
        other.step()
        assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))

    in_child(step_without_memory)
