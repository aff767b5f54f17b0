"""Makes a network smaller by its zero neurons and filters: `compact`."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from regkernels.distributed import sharded
from regkernels.structure import accounts, computed, layers, locks, parts, removal
from regkernels.structure.changes import Changes
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Units
from regkernels.structure.parts import Part
from regkernels.structure.report import with_values
from regkernels.structure.results import Compacted, Kept, Shrunk
from regkernels.structure.tracing import Trace, one_line
from regkernels.structure.walk import follow

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def compact(model: nn.Module, example_inputs: Any = None, *, eval_only: bool = False) -> Compacted:
    """Returns a smaller model that computes the same: without zero neurons and filters, and those that nobody reads.

    Removed is every channel that all its readers can do without: because their weights for it are zero, or because it is the same
    constant at every place of every sample, such as activation(bias) of a zero row, which then becomes part of the reader's
    bias. With a channel go the row or filter that makes it, its entries in batch normalisations, and the columns that read it. This is
    repeated until nothing changes. Channels that are added to each other, as in residual networks, are removed where all of them can be.

    Followed are Linear, Conv1d to 3d (also depthwise), ConvTranspose, Embedding, batch and instance normalisation, activations, gated
    linear units, dropout, pooling, flattening, permuting, concatenation along the channels, sums and products, and transformers'
    Conv1D. What torch.fx cannot trace, be it a submodule or the model, keeps the sizes of its inputs and outputs, and each part inside
    of it that can be traced is made smaller by itself: forward of what is around it must not reach into it. In transformers' GPT-2,
    Llama, Mistral and BERT dead heads of attention go, too. Layers that are not known stay as they are and are reported.
    Nothing is removed in front of a layer normalisation, nor where a constant other than zero meets zero padding: that would not be
    exact. Inputs and outputs of the model keep their sizes, and every layer keeps at least one channel. Modules with hooks or
    parametrizations, used more than once, or with tied parameters are left as they are.

    Outputs stay the same up to rounding, for finite activations; gradients of what is left, too.

    Args:
        model: any module, on any device, in any floating-point dtype. Not changed: a deep copy is.
        example_inputs: a tensor, a tuple of positional arguments, or a dictionary of arguments by name. If given, the model and its copy are run on it in evaluation mode,
            and outputs that differ are an error. Arguments that are no tensors are taken as they are there; without example_inputs,
            optional ones are taken at their defaults. Inputs have a dimension of samples.
        eval_only: ask for the same outputs in evaluation mode only. By default they are the same in training mode, too, which keeps
            constants that dropout makes random and those behind a batch normalisation whose running statistics have not settled.

    Returns:
        `Compacted`: the smaller ``model`` (same class, training mode, dtypes, devices, requires_grad; new parameters without
        gradients, so make a new optimizer), what was ``removed``, and what was ``kept`` and why. A reader without a bias gets
        one where there is a constant to take over.

    Raises:
        TypeError: for arguments by name that forward does not take, for what is no module, wrappers (pass the module inside), parameters without values, models that are spread over ranks
            (load their full state dict into one that is not).
        ValueError: for a forward that depends on the sizes of layers, compact its parts one by one then; for layers under
            `torch.nn.utils.prune` and the old weight_norm and spectral_norm, which are to be removed first.
        RuntimeError: where outputs for ``example_inputs`` differ.
    """
    _check(model)
    examples = _arguments(model, example_inputs)
    try:
        smaller, found = _smaller(model, examples, eval_only)
        if examples is not None:
            _same_outputs(model, smaller, examples)
    except Exception as error:
        if isinstance(example_inputs, Mapping) and examples == (example_inputs,):
            arguments = ", ".join(inspect.signature(model.forward).parameters)
            error.add_note(
                f"example_inputs, of whose keys none is an argument of forward ({arguments}), was passed as the first argument"
            )
        raise
    before, after = (sum(param.numel() for param in m.parameters()) for m in (model, smaller))
    removed = tuple(layer for one in found for layer in one.removed)
    kept = tuple(kept for one in found for kept in one.kept) + accounts.not_known(smaller)
    return Compacted(smaller, removed, kept, before, after, Changes.between(model, smaller))


def _arguments(model: nn.Module, given: Any) -> tuple[Any, ...] | None:
    """Returns positional arguments; those that are given by name with the defaults of the others."""
    if given is None or isinstance(given, tuple):
        return given
    signature = inspect.signature(model.forward)
    if not isinstance(given, Mapping) or not given.keys() & signature.parameters.keys():
        return (given,)
    try:
        bound = signature.bind(**given)
    except TypeError as error:
        raise TypeError(f"example_inputs does not fit forward of {type(model).__name__}: {error}") from error
    by_position = {name for name, one in signature.parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD}
    if by_name := [name for name in given if name not in by_position]:
        raise TypeError(
            f"example_inputs has {', '.join(by_name)}, which forward of {type(model).__name__} takes by name only: wrap the model in a "
            "module whose forward passes it on, or leave it at its default"
        )
    bound.apply_defaults()
    return bound.args


class _Found(NamedTuple):
    removed: tuple[Shrunk, ...]
    kept: tuple[Kept, ...]


def _smaller(model: nn.Module, examples: tuple[Any, ...] | None, eval_only: bool) -> tuple[nn.Module, list[_Found]]:
    """Makes a copy smaller, part by part."""
    left: dict[str, str] = {}
    shared = locks.sharing(model)
    while True:
        smaller = copy.deepcopy(model)
        try:
            found = parts.find(smaller, examples, _modes(model, eval_only), left)
            return smaller, _shrink_parts(smaller, found, examples, shared)
        except _SizesMatterError as error:
            if not error.part:
                raise
            left[error.part] = str(error)


def _shrink_parts(
    smaller: nn.Module,
    found_parts: Sequence[Part],
    examples: tuple[Any, ...] | None,
    shared: Mapping[tuple[str, str], str],
) -> list[_Found]:
    inner = {part.name for part in found_parts if part.name}
    users = Counter(module for part in found_parts for module in part.used())
    twice = locks.named_twice(smaller)
    found = []
    for part in found_parts:
        own = part.used()
        others = {module for module, count in users.items() if count > (module in own)}
        elsewhere = twice | others | part.reached if part.around else set()
        locked = locks.why_locked(smaller, part.name, part.traces.values(), shared, elsewhere)
        found.append(_renamed(part, _shrink(part, examples, locked), inner - {part.name}))
    return found


def _shrink(part: Part, examples: tuple[Any, ...] | None, locked: dict[str, str]) -> _Found:
    """Takes out of a part what can go, until nothing changes."""
    model, traces = part.module, part.traces
    weights: dict[str, layers.Weights] = {}
    numbers = accounts.Numbers(model)
    cut: set[str] = set()
    while True:
        units = Units()
        found = [
            follow(trace, Facts(model, units, _training(mode), locked.get, weights, part.ends()))
            for mode, trace in traces.items()
        ]
        decision = removal.decide(found, units)
        if not decision.removed:
            break
        numbers.keep(removal.apply(model, found, units, decision))
        cut.update(name for facts in found for name in facts.scales)
    for mode, trace in traces.items():
        _check_forward(part, trace, None if part.around else examples, mode, cut)
    closed = {name: reason for trace in traces.values() for name, reason in trace.closed.items()}
    kept = accounts.kept(model, found[0], units, decision, locked | closed, numbers)
    return _Found(numbers.shrunk(model), kept)


def _renamed(part: Part, found: _Found, inner: set[str]) -> _Found:
    """Gives layers their names in the whole model, and leaves out those of which ``inner`` parts give accounts."""
    removed = tuple(layer._replace(name=part.full(layer.name)) for layer in found.removed)
    kept = tuple(kept._replace(name=part.full(kept.name)) for kept in found.kept)

    def elsewhere(name: str) -> bool:
        return any((name == other or name.startswith(f"{other}.")) and other.startswith(part.name) for other in inner)

    return _Found(removed, tuple(one for one in kept if not elsewhere(one.name)))


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, _WRAPPERS):
        raise TypeError(f"model is wrapped in {type(model).__name__}; pass model.module")
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "model is what torch.compile returned; pass the module that you compiled, and compile the result"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a ScriptModule; pass the module that it was made from")
    if "forward" in vars(model):
        raise TypeError(f"forward of this {type(model).__name__} has been replaced on the object; pass a plain module")
    sharded.check_whole_model(
        model,
        "take its full state dict (get_model_state_dict of torch.distributed.checkpoint.state_dict, with "
        "StateDictOptions(full_state_dict=True)), load that into a model that is not spread, and compact this one",
    )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        with_values(name, tensor)
    computed.check_plain(model)


def _modes(model: nn.Module, eval_only: bool) -> list[str]:
    modes = ["eval"] if eval_only else ["eval", "train"]
    mixed = len({module.training for module in model.modules()}) > 1
    return [*modes, "as it is"] if mixed and not eval_only else modes


def _training(mode: str) -> Callable[[nn.Module], bool]:
    return {"eval": lambda _: False, "train": lambda _: True}.get(mode, lambda module: module.training)


class _SizesMatterError(ValueError):
    """Says that forward of a part depends on the sizes of layers."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(what)
        self.part = part


def _check_forward(part: Part, before: Trace, examples: tuple[Any, ...] | None, mode: str, cut: set[str]) -> None:
    """Raises where the smaller part does something else than what was followed."""
    says = "forward depends on the sizes of layers"
    try:
        after = parts.trace(part.module, examples, mode).signature(cut)
    except Exception as error:  # of whatever sort: forward may check sizes itself
        raise _SizesMatterError(part.name, f"{says}: with the smaller ones it fails ({one_line(error)})") from error
    for old, new in zip_longest(before.signature(cut), after):
        if old != new:
            raise _SizesMatterError(
                part.name,
                f"{says}: it computes {old} with the model, and {new} with the smaller one; compact its parts one by one",
            )


@torch.no_grad()
def _same_outputs(model: nn.Module, smaller: nn.Module, examples: tuple[Any, ...]) -> None:
    outputs = []
    for module in (model, smaller):
        module = copy.deepcopy(module).eval()
        outputs.append(tree_flatten(module(*copy.deepcopy(examples)))[0])
    for index, (old, new) in enumerate(zip(*outputs, strict=True)):
        if isinstance(old, Tensor) and not _close(old, new):
            raise RuntimeError(
                f"output {index} for example_inputs differs between the model and its smaller copy; nothing was changed. "
                "Does forward draw random numbers in evaluation, or use parameters in a way that torch.fx does not see?"
            )


def _close(old: Tensor, new: Tensor) -> bool:
    """Compares half of the digits: what is silently wrong is wrong by more, and rounding through many layers by less."""
    if old.shape != new.shape or not (old.is_floating_point() or old.is_complex()):
        return torch.equal(old, new)
    size = old.abs()[old.isfinite()]
    allowed = math.sqrt(torch.finfo(old.dtype).eps) * (float(size.max()) if size.numel() else 0.0)
    return torch.allclose(old, new, rtol=0, atol=allowed, equal_nan=True)
