"""Compares the ranks' optimizers, before they drift apart in silence."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkernels.distributed.shards import is_dtensor, words
from regkernels.distributed.sums import NOBODY_ANSWERS, Sums

BITS = 18
"""Bits of a fingerprint: the sum of their squares over 2**17 ranks is an exact float64."""

Description = dict[str, Any]
"""What ranks must agree on: a text for each thing, by what messages call it."""


class Described(NamedTuple):
    """Holds an optimizer, as far as ranks compare it."""

    name: str
    """The name of its class."""
    arguments: object
    """What the constructor was given beside param groups; its ``repr`` is compared."""
    groups: Sequence[Mapping[str, Any]]
    """Its param groups."""


def check_agreement(optimizer: Any, group: Any = None) -> None:
    """Raises on every rank where the ranks of ``group`` have different optimizers; a collective call, for each of them.

    Compares the number of param groups and parameters, their shapes in whole, types and placements, the hyper-parameters of
    each param group, and what was given to the constructor. The values of weights and states are not looked at, nor are
    hyper-parameters that are tensors on an accelerator.

    In sharded runs the first step calls it by itself, and later steps that add up a norm or `stats` compare hyper-parameters
    on the way. Data parallel runs without shards never do: call it after the optimizer is made, and where a scheduler
    depends on what a rank has measured.

    Args:
        optimizer: one of `regkernels.optim`. Not changed.
        group: a process group; None: all ranks.

    Raises:
        TypeError: for another optimizer, and for a group that this rank is no member of.
        ValueError: where ranks differ, naming the first difference, and the ranks and values of it.
    """
    described = getattr(optimizer, "_described", None)
    if described is None:
        raise TypeError(f"check_agreement compares optimizers of regkernels.optim, got {type(optimizer).__name__}")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError("check_agreement needs a process group: call torch.distributed.init_process_group() before")
    compare([description(described())], [check_process_group(group, "group") or torch.distributed.group.WORLD])


def check_process_group(value: Any, name: str = "process_group") -> Any:
    """Returns a process group that this rank is a member of, or None; raises TypeError for anything else."""
    if value is None:
        return None
    if not torch.distributed.is_available() or not isinstance(value, torch.distributed.ProcessGroup):
        said = " (this rank is no member of it)" if isinstance(value, int) else ""
        raise TypeError(
            f"{name} must be a torch.distributed.ProcessGroup or None, got {type(value).__name__}{said}; pass what "
            "torch.distributed.new_group() returned, or torch.distributed.group.WORLD once the process group is initialised"
        )
    return value


def description(described: Described, *, params: bool = True) -> Description:
    """Puts into words what ranks compare. ``params``: whether they have the same parameters, too."""
    found: Description = {"type": described.name, "the arguments of the constructor": repr(described.arguments)}
    found["the number of param groups"] = str(len(described.groups))
    for index, group in enumerate(described.groups):
        found.update((f"{key!r} of param group {index}", text) for key, text in _hyper_parameters(group))
        if params:
            found[f"the number of parameters of param group {index}"] = str(len(group["params"]))
            for position, param in enumerate(group["params"]):
                found[f"parameter {position} of param group {index}"] = _text_of(param)
    return found


def check_first_step(described: Described, sums: Sums, process_group: Any) -> None:
    """Compares the ranks' optimizers for parameters that are spread over ranks, by the ranks that they are spread over."""
    meshes = sorted(sums.meshes, key=lambda mesh: -mesh.size())
    if meshes:
        compare([description(described)], _process_groups_of(meshes[0]))
    if process_group is not None and process_group.size() > 1:
        compare([description(described, params=False)], [process_group])


def raise_difference(described: Described, sums: Sums) -> None:
    """Raises on every rank of ``sums`` where fingerprints differ; all of them have seen that, and come here."""
    compare([description(described, params=False)], sums.process_groups)
    raise ValueError(
        "the ranks have different optimizers: hyper-parameters were others in the last step, or are on ranks that hold the "
        "same shards; regkernels.distributed.check_agreement(optimizer), called on all ranks before each step, says which"
    )


def _process_groups_of(mesh: Any) -> list[Any]:
    """Returns the process groups by which all ranks of a mesh can be asked, one after the other."""
    if mesh.size() == torch.distributed.get_world_size():
        return [torch.distributed.group.WORLD]
    return [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]


def compare(found: Sequence[Description], process_groups: Sequence[Any]) -> None:
    """Raises on all ranks where descriptions differ. ``found``: this rank's. ``process_groups``: asked one after the other, each
    for what those before have answered, so that in the end all ranks know all."""
    # First by digests: what ten thousand ranks say of a thousand parameters is gigabytes, on each of them.
    text = repr([sorted(one.items()) for one in found])
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    seen = {digest}
    for process_group in process_groups:
        seen = set().union(*_asked(seen, process_group))
    if len(seen) == 1:
        return
    everything = [(torch.distributed.get_rank(), one) for one in found]
    for process_group in process_groups:
        everything = [one for answer in _asked(everything, process_group) for one in answer]
    everything.sort(key=lambda answer: answer[0])
    keys = dict.fromkeys(key for _, one in everything for key in one)
    for key in keys:
        by_value: dict[str, list[int]] = {}
        for rank, one in everything:
            by_value.setdefault(one.get(key, "missing"), []).append(rank)
        if len(by_value) > 1:
            values = "; ".join(f"{value} on rank{_listed(ranks)}" for value, ranks in by_value.items())
            raise ValueError(
                f"the ranks have different optimizers: {key} is {values}. Weights would drift apart in silence; make the "
                "optimizer in the same way on every rank, and let schedulers see the same numbers everywhere"
            )


def _asked(own: Any, process_group: Any) -> list[Any]:
    """Returns what each rank of a process group has passed as ``own``. One message."""
    answers: list[Any] = [None] * process_group.size()
    try:
        torch.distributed.all_gather_object(answers, own, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(
            f"the optimizers of {process_group.size()} ranks could not be compared before the first step: {NOBODY_ANSWERS}"
        ) from error
    return answers


def fingerprint(groups: Sequence[Mapping[str, Any]]) -> int:
    """Returns BITS bits that tell hyper-parameters of param groups from others, as far as the host knows them."""
    texts = (f"{key}={text}" for group in groups for key, text in _hyper_parameters(group))
    return zlib.crc32("|".join(texts).encode()) & ((1 << BITS) - 1)


def _hyper_parameters(group: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what the ranks that share parameters must have in common of a param group, as names and texts."""
    for key, value in group.items():
        if key not in ("params", "param_names", "param_numbers", "l1_weights"):
            yield key, _text(value)


def differ(count: float, total: float, squares: float) -> bool:
    """Tells whether fingerprints differ, from how many were added up, their sum and the sum of their squares."""
    return int(count) * int(squares) != int(total) ** 2


def _text(value: Any) -> str:
    """Says what a hyper-parameter is, as far as the host knows it without waiting."""
    if isinstance(value, Tensor):
        return repr(value.item()) if value.is_cpu and value.numel() == 1 else f"a tensor on {value.device.type}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _text_of(param: Any) -> str:
    """Says of a parameter what must be the same on all ranks."""
    if isinstance(param, torch.nn.UninitializedParameter):
        return f"{param.dtype} without a shape"
    spread = f", placements {words(param)}" if is_dtensor(param) else ""
    return f"{param.dtype} of shape {tuple(param.shape)}{spread}"


def _listed(ranks: Sequence[int]) -> str:
    """Lists ranks behind the word "rank": " 3" or "s 1, 2, ..."."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"s {shown}" if len(ranks) > 1 else f" {shown}"
