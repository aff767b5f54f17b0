"""Answers how a tensor's elements lie in memory: without gaps, as another's do, in the same places as another's.

Looks at shapes, strides and addresses only; what the memory is used for is no matter here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from regkernels import transforms


def has_layout(tensor: Tensor, like: Tensor) -> bool:
    """Tells whether element i of the one lies at the same offset as element i of the other."""
    if tensor.shape != like.shape:
        return False
    if tensor.numel() == 0:
        return True
    sizes = zip(like.shape, tensor.stride(), like.stride(), strict=True)
    return all(ours == theirs for size, ours, theirs in sizes if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Tells whether the elements fill one run of memory, in any order of dimensions, each element once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(
        (stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Returns the strides of a copy without gaps: the tensor's own where it is dense, else those of a contiguous one."""
    return tensor.stride() if is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()


def has_memory(tensor: Tensor) -> bool:
    """Tells whether the storage is as large as what shape, strides and offset reach: somebody may have resized it."""
    return tensor.untyped_storage().nbytes() >= reach(tensor) or not tensor.numel()


def reach(tensor: Tensor) -> int:
    """Returns the bytes of its storage that a tensor needs, from their beginning."""
    if tensor.is_contiguous():
        return int(tensor.nbytes + tensor.storage_offset() * tensor.element_size())
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int((tensor.storage_offset() + last + 1) * tensor.element_size())


def is_usable(tensor: Tensor) -> bool:
    """Tells whether kernels can take a tensor where it lies: real, dense, its memory not to be read negated or conjugated."""
    return is_dense(tensor) and not tensor.is_complex() and not tensor.is_neg()


def empty_dense(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns memory without values and without gaps, in the layout of ``like`` where that is dense, else contiguous."""
    keep = torch.preserve_format if is_dense(like) else torch.contiguous_format
    return torch.empty_like(like, dtype=dtype, memory_format=keep)


def own_storage(run: Tensor) -> Tensor:
    """Returns the memory of ``run`` as a storage of its own, which begins and ends where ``run`` does; a copy where that is empty.

    Serialisers take tensors of one storage for tied or write the whole of it for each: Accelerate's ``save_model`` keeps one
    parameter of such a model, safetensors' refuses it, and ``torch.save`` of one layer is as large as the model.

    torch has no other way to make one: a storage owns its memory, or is told by DLPack who does, and keeps that alive. On a device the
    caching allocator knows the memory of ``run`` only, by its beginning: ``record_stream`` of the storage that is returned does nothing,
    and processes cannot share it by CUDA's handles. Both work on the memory that ``run`` was cut from.
    """
    if transforms.is_fake(run):
        return run
    return from_dlpack(to_dlpack(run)) if run.numel() else run.clone()  # the capsule: no stream waits for it


def in_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns ``tensor`` where its elements lie as those of the dense tensor ``like`` do, else a copy that does."""
    return tensor if has_layout(tensor, like) else empty_dense(like, tensor.dtype).copy_(tensor)


def overlaps_itself(tensor: Tensor) -> bool:
    """Tells whether two elements are one place in memory, as in an expanded tensor."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            # Not nested like the dimensions of a slice; so rare that looking at every element is no matter.
            return tensor.numel() > 0 and _addresses(tensor).unique().numel() < tensor.numel()
        reach += max(size - 1, 0) * stride
    return False


def first_shared(named: Iterable[tuple[Tensor, str]]) -> tuple[str, str] | None:
    """Returns the names of two tensors that have an element in common; None where there are none."""
    runs = sorted(
        ((*_extent(t), i, t, name) for i, (t, name) in enumerate(named) if t.numel() and not transforms.is_fake(t)),
        key=lambda run: run[:3],
    )
    open_runs: list[tuple[int, int, int, Tensor, str]] = []
    for run in runs:
        open_runs = [other for other in open_runs if other[1] > run[0]]
        for other in open_runs:
            if _share_an_element(other[3], run[3]):
                return other[4], run[4]
        open_runs.append(run)
    return None


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Returns the first address, and the one after the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _share_an_element(a: Tensor, b: Tensor) -> bool:
    """Tells whether two tensors whose extents overlap have an element in common."""
    if all((end - begin) == t.nbytes for t in (a, b) for begin, end in [_extent(t)]):
        return True  # both without gaps, and their extents overlap
    return bool(torch.isin(_addresses(a), _addresses(b)).any())


def _addresses(tensor: Tensor) -> Tensor:
    """Returns the address of each element; int64, on the CPU."""
    offsets = torch.zeros(tensor.shape, dtype=torch.int64, device="cpu")
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        shape = [1] * dim + [size] + [1] * (tensor.dim() - dim - 1)
        offsets = offsets + stride * torch.arange(size, device="cpu").reshape(shape)
    return tensor.data_ptr() + tensor.element_size() * offsets
