"""How often kernels are compiled: once, whatever numbers and tensors come later. Needs no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regkernels as rk
from tests.support.random_numbers import placed
from tests.triton.driver import present

ARCHITECTURE = "sm_90"

# Around what Triton would compile separately if it were asked to: 0, 1, multiples of 16.
SIZES = ([100], [1], [16, 16], [8192], [8193, 1], [3] * 17, [0, 5], [8192 * 16 + 1, 8192 * 3])


def tensors(sizes: list[int], *, offset: int = 0) -> list[Tensor]:
    """``offset``: elements by which they are away from where an allocation begins."""
    return [torch.ones(size + offset)[offset:] for size in sizes]


def train(sizes: list[int], *, offset: int = 0, **options: Any) -> rk.optim.AdamW:
    params = [nn.Parameter(tensor) for tensor in tensors(sizes, offset=offset)]
    for param in params:
        param.grad = torch.ones(param.numel() + offset)[offset:]
    optimizer = rk.optim.AdamW(params, **{"lr": 0.1, "l1": 0.1, **options}, stats=True, max_grad_norm=1.0)
    optimizer.step()
    return optimizer


def train_by_groups(sizes: list[int], *, offset: int = 0, rows: bool = True, **options: float) -> None:
    shapes = [(max(size // 64, 1), 64) if rows else (size, 3) for size in sizes]
    params = [nn.Parameter(torch.ones(a * b + offset)[offset:].view(a, b)) for a, b in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    by_groups = {"max_norm": 1.0, "group_dim": 0 if rows else 1}
    rk.optim.AdamW(params, **{"lr": 0.1, "l1": 0.1, "group_l1": 0.1, **by_groups, **options}, stats=True).step()


def train_columns(sizes: list[int], *, offset: int = 0, **options: float) -> None:
    train_by_groups(sizes, offset=offset, rows=False, **options)


def penalise(sizes: list[int], *, offset: int = 0, l1: float = 0.5, l2: float = 0.5) -> None:
    rk.elastic_net_penalty([tensor.requires_grad_() for tensor in tensors(sizes, offset=offset)], l1, l2).backward()


def threshold(sizes: list[int], *, offset: int = 0, value: float = 0.5) -> None:
    for tensor in tensors(sizes, offset=offset):
        rk.prox.soft_threshold_(tensor, value)


def shrink(sizes: list[int], *, offset: int = 0, lr: float = 0.1, l1: float = 0.1) -> None:
    params = [nn.Parameter(tensor) for tensor in tensors(sizes, offset=offset)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = torch.optim.Adam(params, lr)
    rk.attach_prox(optimizer, l1)
    for _ in range(2):
        optimizer.step()


FIRST: dict[Callable[..., object], list[tuple[list[int], int]]] = {
    train_by_groups: [(SIZES[0], 0), (SIZES[0], 1)],
    train_columns: [(SIZES[0], 0), ([8193], 0)],
}
"""Of groups there are kernels for those that lie so that 16 bytes are moved at a time, and for those that several programs share."""


@pytest.mark.parametrize(
    ("use", "values"),
    [
        (train, [{"lr": 0.0}, {"lr": 1.0}, {"l1": 0.0}, {"l1": 1.0}, {"weight_decay": 16.0}]),
        (train_by_groups, [{"lr": 0.0}, {"l1": 1.0}, {"group_l1": 16.0}, {"max_norm": 16.0}, {"weight_decay": 16.0}]),
        (train_columns, [{"lr": 0.0}, {"group_l1": 1.0}]),
        (penalise, [{"l1": 1.0}, {"l2": 16.0}]),
        (shrink, [{"lr": 0.0}, {"lr": 1.0}, {"l1": 1.0}, {"l1": 16.0}]),
        (threshold, [{"value": 0.0}, {"value": 1.0}, {"value": 16.0}]),
    ],
    ids=["step", "rows", "columns", "penalty", "attach_prox", "soft_threshold"],
)
def test_other_numbers_and_other_tensors_compile_nothing(
    use: Callable[..., object], values: list[dict[str, float]]
) -> None:
    with present(ARCHITECTURE) as device:
        for sizes, offset in FIRST.get(use, [(SIZES[0], 0)]):
            use(sizes, offset=offset)
        compiled, launches = len(device.compiled()), device.launches
        assert compiled > 0
        for options in values:
            use(SIZES[0], **options)
        for sizes in SIZES:
            for offset in (0, 1):
                use(sizes, offset=offset)
        assert len(device.compiled()) == compiled
        assert device.launches > launches


def test_a_strength_of_zero_compiles_one_kernel_more() -> None:
    """Which leaves out the sum that is not wanted."""
    with present(ARCHITECTURE) as device:
        penalise(SIZES[0])
        compiled = len(device.compiled())
        for more, strengths in ((1, {"l1": 0.0}), (2, {"l2": 0.0}), (2, {"l1": 0.0, "l2": 0.0}), (2, {"l1": 2.0})):
            penalise(SIZES[1], **strengths)
            assert len(device.compiled()) == compiled + more


def test_an_upstream_gradient_at_any_address_compiles_nothing() -> None:
    with present(ARCHITECTURE) as device:
        penalise(SIZES[0], l1=0.0)
        compiled = len(device.compiled())
        values = torch.stack([rk.l2_penalty(tensors(SIZES[0])[0].requires_grad_(), 0.5) for _ in range(2)])
        (values * torch.ones(2)).sum().backward()  # the second lies behind the first
        assert len(device.compiled()) == compiled


def test_later_steps_and_scheduled_numbers_compile_nothing() -> None:
    with present(ARCHITECTURE) as device:
        optimizer = train([100, 200])
        compiled, launches = len(device.compiled()), device.launches
        for step in range(20):
            optimizer.param_groups[0].update(lr=0.1 * step, l1=1.0 * step, weight_decay=1.0 * step)
            optimizer.step()
        assert len(device.compiled()) == compiled
        assert device.launches == launches + 20 * launches


def test_numbers_on_the_device_wherever_they_lie_compile_nothing() -> None:
    with present(ARCHITECTURE) as device:
        numbers = torch.full((4,), 0.1)
        optimizer = train([100], capturable=True, lr=numbers[0])
        compiled = len(device.compiled())
        for index in range(1, 4):
            param = nn.Parameter(torch.ones(index))
            param.grad = torch.ones(index)
            optimizer.add_param_group({"params": [param], "lr": numbers[index], "l1": numbers[index].double()})
            optimizer.step()
        assert len(device.compiled()) == compiled


def test_more_groups_compile_nothing() -> None:
    with present(ARCHITECTURE) as device:
        optimizer = train([100])
        compiled = len(device.compiled())
        for group in range(1, 17):
            param = nn.Parameter(torch.ones(group))
            param.grad = torch.ones(group)
            optimizer.add_param_group({"params": [param], "l1": 0.1 * group})
            optimizer.step()
        assert len(device.compiled()) == compiled


def test_a_learning_rate_on_the_device_needs_no_other_kernel() -> None:
    with present(ARCHITECTURE) as device:
        train([100])
        compiled = len(device.compiled())
        train([100], lr=torch.tensor(0.1))
        assert len(device.compiled()) == compiled


def test_a_part_at_any_place_compiles_one_kernel_more() -> None:
    """Of those that draw random numbers: for places that are no multiples of 8."""

    def train_part(*places: int) -> None:
        with placed({100 + index: [(place, 100 + index)] for index, place in enumerate(places)}):
            train([100 + index for index in range(len(places))], state_dtype=torch.bfloat16)

    with present(ARCHITECTURE) as device:
        train([100], state_dtype=torch.bfloat16)
        compiled = len(device.compiled())
        train_part(8, 16, 512, 2**35)
        assert len(device.compiled()) == compiled
        train_part(1)
        assert len(device.compiled()) == compiled + 1
        train_part(0, 3, 4, 2**35 - 3)
        assert len(device.compiled()) == compiled + 1
