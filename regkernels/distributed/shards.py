"""Says how a tensor is spread over a mesh of ranks (`torch.distributed.tensor.DTensor`), and what this rank holds of it.

Importing DTensor takes as long as half of torch: nothing here does before somebody else has made one.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor

from regkernels.memory import own_storage


def is_dtensor(tensor: object) -> bool:
    """Tells whether a tensor is a `DTensor`, without importing what makes one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def held(tensor: Any) -> Tensor:
    """Returns the memory of this rank: a `DTensor`'s local tensor, any other tensor itself. May be empty."""
    if not is_dtensor(tensor):
        return tensor  # type: ignore[no-any-return]
    own = tensor._local_tensor
    return own.wait() if hasattr(own, "wait") else own  # type: ignore[no-any-return]


def cut_over(tensor: Any) -> dict[str, Any]:
    """Returns the process groups of ranks that hold different elements of a tensor, by name: one for each dimension of the mesh."""
    if not is_dtensor(tensor):
        return {}
    mesh = tensor.device_mesh
    cut = [dim for dim, at in enumerate(tensor.placements) if not at.is_replicate() and mesh.size(dim) > 1]
    return {str(group.group_name): group for group in map(mesh.get_group, cut)}


def trace(tensor: Any) -> tuple[int, int, int]:
    """Returns numbers of which one is another after somebody has written or replaced the values, except through ``tensor.data``."""
    own = held(tensor)  # what is done to a DTensor, and what is done to the memory of this rank, count for themselves
    return own.data_ptr(), own._version, tensor._version


def is_plain(tensor: Any) -> bool:
    """Tells whether the memory of this rank is there: what a collective hands out may be on its way still."""
    return not is_dtensor(tensor) or type(tensor._local_tensor) is Tensor


def spread_like(own: Tensor, like: Any) -> Tensor:
    """Returns ``own`` as what this rank holds of a tensor that is spread as ``like`` is; ``own`` itself where ``like`` is not."""
    if not is_dtensor(like):
        return own
    if own.storage_offset():
        # The address of a DTensor is its storage offset, and torch can copy and pickle only those whose address is 0.
        own = own_storage(own)
    dtensor = sys.modules["torch.distributed.tensor"].DTensor
    # Not from_local, which would move it to the device of the mesh: shards may have been moved to the CPU (CPUOffloadPolicy).
    spec = dataclasses.replace(like._spec, tensor_meta=like._spec.tensor_meta._replace(dtype=own.dtype))
    return dtensor(own, spec, requires_grad=False)  # type: ignore[no-any-return]


def spread_as(tensor: Any, like: Any) -> Any:
    """Returns ``tensor``, or where it is spread otherwise than ``like``, the same numbers spread as ``like`` is.

    That takes all ranks of the mesh.
    """
    if is_spread_alike(tensor, like):
        return tensor
    return tensor.redistribute(placements=like.placements)


def is_spread_alike(a: Any, b: Any) -> bool:
    """Tells whether both are plain tensors, or both on one mesh with the same placements."""
    if not is_dtensor(a) or not is_dtensor(b):
        return is_dtensor(a) == is_dtensor(b)
    first, second = a._spec, b._spec
    return first is second or (first.mesh == second.mesh and tuple(first.placements) == tuple(second.placements))


def lies_alike(a: Any, b: Any) -> bool:
    """Tells whether this rank has the same part of two `DTensor`s of one shape.

    The mesh of one that has been in a file knows neither its process groups nor which rank it is on: the place of the rank
    that saved it is what it knows.
    """
    ours, theirs = a.device_mesh, b.device_mesh
    return (
        tuple(a.placements) == tuple(b.placements)
        and (ours is theirs or torch.equal(ours.mesh.cpu(), theirs.mesh.cpu()))
        and ours.get_coordinate() == theirs.get_coordinate()
        and a._local_tensor.shape == b._local_tensor.shape
    )


def splits_groups(tensor: Any, dim: int | str, size: int) -> bool:
    """Tells whether a group of ``size`` indices along ``dim``, or of the whole tensor, may lie on several ranks."""
    if not is_dtensor(tensor):
        return False
    own = dim % max(tensor.dim(), 1) if isinstance(dim, int) else None
    splits = [(placement, tensor.device_mesh.size(i)) for i, placement in enumerate(tensor.placements)]
    splits = [(placement, ranks) for placement, ranks in splits if ranks > 1 and not placement.is_replicate()]
    if any(own is None or placement.dim % tensor.dim() != own for placement, _ in splits):
        return True
    # FSDP2 shards what tensor parallelism has sharded before, though its dimension of the mesh comes first.
    splits.sort(key=lambda split: hasattr(split[0], "split_factor"))
    lengths = {tensor.shape[own]} if splits else set()  # of the parts, each of which begins with a group
    for _, ranks in splits:
        parts = {length: -(-length // ranks) for length in lengths}
        if any(part < length and part % size for length, part in parts.items()):
            return True
        lengths = {n for length, part in parts.items() if part for n in (part, length % part)}
    return False


def words(tensor: Any) -> str:
    """Says how a `DTensor` is spread, for messages."""
    names = tensor.device_mesh.mesh_dim_names
    placements = ", ".join(map(str, tensor.placements))
    over = f" over ({', '.join(names)})" if names else ""
    return f"[{placements}]{over}"


def described(tensor: Any) -> str:
    """Says what a tensor is, for messages."""
    return f"a DTensor with placements {words(tensor)}" if is_dtensor(tensor) else "a plain tensor"


_PLACEMENTS = ("Replicate", "Shard", "_StridedShard")
"""Names of torch's placements of which `regkernels.distributed.index` knows what a rank holds. Others, or such as torch may derive from
them, would pass for one of these and give wrong elements."""


def check_parameter(param: Any, name: str) -> None:
    """Raises where no rank holds the elements of a `DTensor`, or this one holds nothing of it; plain tensors pass."""
    if not is_dtensor(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{name} is a DTensor with placements {words(param)}: a partial tensor is a sum that has yet to be formed, and no rank "
            f"knows an element of it; pass {name}.redistribute(placements=...) with Replicate() or Shard() in the place of Partial()"
        )
    for placement in param.placements:
        kind = type(placement).__name__
        if kind not in _PLACEMENTS or (kind == "_StridedShard" and not hasattr(placement, "split_factor")):
            raise TypeError(
                f"{name} is a DTensor with placements {words(param)}, of which {kind} is not known here, so that nobody "
                f"can tell which elements this rank has; pass {name}.redistribute(placements=...) with Replicate() or Shard() in its place"
            )
    if param.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"{name} is a DTensor on the mesh {param.device_mesh}, which this rank {torch.distributed.get_rank()} is no part "
            "of; leave it out on this rank, and pass what is on its own mesh"
        )


def check_weight(weight: Any, param: Any, name: str, of: str) -> None:
    """Raises where the weights of elements, called ``name``, are not where the elements are, called ``of``."""
    if not isinstance(weight, Tensor) or is_spread_alike(weight, param):
        return
    if not is_dtensor(param):
        raise ValueError(
            f"{name} is a DTensor with placements {words(weight)}, and {of} a plain tensor. FSDP gathers parameters from the forward "
            "pass on: make the list list(model.parameters()) before the first one and pass that as params. Otherwise pass "
            f"{name}.full_tensor()"
        )
    raise ValueError(
        f"{name} is {described(weight)}, and {of} a DTensor with placements {words(param)}: pass one that is spread like it, made by "
        "distribute_tensor(weights, param.device_mesh, param.placements) of torch.distributed.tensor, or computed from it"
    )


def check_state(value: Any, param: Any, what: str) -> None:
    """Raises where a state that is to be loaded is spread otherwise than its parameter.

    This rank's part can be taken from a whole plain one, and from one that this rank has saved in the same layout.
    """
    if not is_dtensor(param):
        if is_dtensor(value):
            raise ValueError(
                f"{what} is {_layout(value)}, of which this process has one part; the parameter is a plain tensor. {_ANEW}, "
                "or call full_tensor() on the states where they are saved"
            )
    elif not is_dtensor(value):
        if value.shape != param.shape:
            raise ValueError(
                f"{what} is a plain tensor of shape {tuple(value.shape)}, the parameter is {_layout(param)} of shape "
                f"{tuple(param.shape)}: a plain state must be the whole one, and whose part this is cannot be told. {_ANEW}, or "
                "call full_tensor() on the states where they are saved"
            )
    elif value.shape == param.shape and not lies_alike(value, param):
        theirs, ours = value.device_mesh.get_coordinate(), param.device_mesh.get_coordinate()
        if theirs != ours and value.device_mesh.mesh.tolist() == param.device_mesh.mesh.tolist():
            raise ValueError(
                f"{what} was saved by another rank, at {theirs} of the mesh; this one is at {ours}. Load on each rank what "
                f"that rank has saved. {_ANEW}"
            )
        raise ValueError(
            f"{what} is {_layout(value)}, the parameter is {_layout(param)}: what optimizer.state_dict() returned fits only "
            f"the mesh and the placements it was saved with. {_ANEW}"
        )


_ANEW = "Save and load with torch.distributed.checkpoint, which shards anew"


def _layout(dtensor: Any) -> str:
    """Says how a `DTensor` is spread, over which ranks, and how much of it is here."""
    ranks, part = dtensor.device_mesh.mesh, tuple(dtensor._local_tensor.shape)
    listed = f"ranks {ranks.tolist()}" if ranks.numel() <= 16 else f"a mesh of {tuple(ranks.shape)} ranks"
    return f"{described(dtensor)} on {listed} ({part} of it here)"
