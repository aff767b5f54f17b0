"""Where groups lie in memory, against the index of every element."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regkernels.memory import is_dense
from regkernels.table.grouping import GroupLayout, check, group_layout

TENSORS: dict[str, Callable[[], Tensor]] = {
    "vector": lambda: torch.empty(12),
    "matrix": lambda: torch.empty(4, 6),
    "transposed": lambda: torch.empty(4, 6).t(),
    "4-dim": lambda: torch.empty(4, 6, 2, 3),
    "channels_last": lambda: torch.empty(4, 6, 2, 3).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: torch.empty(4, 6, 2, 3).permute(2, 0, 3, 1),
    "size-1 dimensions": lambda: torch.empty(4, 1, 6, 1).contiguous(memory_format=torch.channels_last),
    "wild stride of a size-1 dimension": lambda: torch.empty(24).as_strided((4, 1, 6), (6, 1000, 1)),
    "sliced": lambda: torch.empty(4, 12)[:, ::2],
    "expanded": lambda: torch.empty(1, 6).expand(4, 6),
    "0-dim": lambda: torch.empty(()),
    "empty": lambda: torch.empty(0, 6),
    "empty inside": lambda: torch.empty(4, 0),
}


def in_memory(tensor: Tensor, values: Tensor) -> Tensor:
    """What ``values``, of the tensor's shape, are in the order of the tensor's memory, or of its contiguous copy's."""
    if not is_dense(tensor):
        return values.reshape(-1)
    flat = torch.empty(tensor.numel(), dtype=values.dtype)
    flat.as_strided(tensor.shape, tensor.stride()).copy_(values)
    return flat


@pytest.mark.parametrize("kind", TENSORS)
def test_every_element_is_in_the_group_of_its_index(kind: str) -> None:
    tensor = TENSORS[kind]()
    for dim in range(-max(tensor.dim(), 1), max(tensor.dim(), 1)):
        length = tensor.shape[dim] if tensor.dim() else 1
        for size in (1, 2, 3, 6):
            if length % size:
                continue
            layout = group_layout(tensor, dim, size)
            assert layout.outer * layout.groups * layout.inner == tensor.numel()
            assert layout.groups == length // size
            shape = [1] * tensor.dim()
            if shape:
                shape[dim] = length
            group = (torch.arange(length) // size).reshape(shape).expand(tensor.shape)
            got = torch.arange(layout.groups)[None, :, None].expand(layout).reshape(-1)
            assert torch.equal(got, in_memory(tensor, group)), (kind, dim, size)
            if tensor.numel():
                assert layout.size == tensor.numel() // layout.groups


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_as_one_group(kind: str) -> None:
    tensor = TENSORS[kind]()
    layout = group_layout(tensor, "tensor")
    assert layout == (1, 1, tensor.numel()) and layout.size == tensor.numel()


def test_weights_of_groups() -> None:
    assert GroupLayout(2, 5, 8).weight("sqrt_size") == 4.0
    assert GroupLayout(2, 5, 8).weight("ones") == 1.0


@pytest.mark.parametrize(
    ("dim", "size", "message"),
    [
        (2, 1, "group_dim=2 does not exist in fc.weight of shape (4, 6): choose from -2 to 1 or 'tensor'"),
        (-3, 1, "group_dim=-3 does not exist in fc.weight of shape (4, 6)"),
        (1, 4, "group_size=4 does not divide the 6 of group_dim=1 in fc.weight of shape (4, 6): choose a divisor"),
        (0, 8, "group_size=8 does not divide the 4 of group_dim=0"),
    ],
)
def test_what_does_not_fit_a_tensor(dim: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        group_layout(torch.empty(4, 6), dim, size, "fc.weight", "group_")


@pytest.mark.parametrize(
    ("dim", "size", "weight", "error", "message"),
    [
        (0.0, 1, "ones", TypeError, "{}dim must be an integer or 'tensor', got 0.0"),
        (True, 1, "ones", TypeError, "{}dim must be an integer or 'tensor', got True"),
        ("rows", 1, "ones", TypeError, "{}dim must be an integer or 'tensor', got 'rows'"),
        (0, 2.0, "ones", TypeError, "{}size must be an integer, got 2.0"),
        (0, 0, "ones", ValueError, "{}size must be at least 1, got 0"),
        ("tensor", 2, "ones", ValueError, "{}size must be 1 where {}dim is 'tensor'"),
        (0, 1, "sqrt", ValueError, "{}weight must be one of 'sqrt_size', 'ones', got 'sqrt'"),
        (0, 1, None, ValueError, "{}weight must be one of 'sqrt_size', 'ones', got None"),
    ],
)
def test_what_fits_no_tensor(dim: Any, size: Any, weight: Any, error: type[Exception], message: str) -> None:
    for prefix in ("", "group_"):
        with pytest.raises(error, match="^" + re.escape(message.replace("{}", prefix))):
            check(dim, size, weight, prefix)


def test_what_is_right() -> None:
    for dim in (0, -1, 3, "tensor"):
        check(dim, 1, "sqrt_size")
