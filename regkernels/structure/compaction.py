"""Makes a network smaller by its zero neurons and filters: `compact`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from regkernels.distributed import sharded
from regkernels.structure import accounts, layers, locks, modules, removal
from regkernels.structure.facts import Facts
from regkernels.structure.layouts import Units
from regkernels.structure.report import with_values
from regkernels.structure.results import Compacted
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
    linear units, dropout, pooling, flattening, permuting, concatenation along the channels, sums and products, in any model that
    torch.fx can trace; submodules that it cannot trace, and layers that are not known, keep their inputs' and outputs' sizes.
    Nothing is removed in front of a layer normalisation, nor where a constant other than zero meets zero padding: that would not be
    exact. Inputs and outputs of the model keep their sizes, and every layer keeps at least one channel. Modules with hooks or
    parametrizations, used more than once, or with tied parameters are left as they are.

    Outputs stay the same up to rounding, for finite activations; gradients of what is left, too.

    Args:
        model: any module, on any device, in any floating-point dtype. Not changed: a deep copy is.
        example_inputs: a tensor, or a tuple of positional arguments. If given, the model and its copy are run on it in evaluation mode,
            and outputs that differ are an error. Arguments that are no tensors are taken as they are there; without example_inputs,
            optional ones are taken at their defaults. Inputs have a dimension of samples.
        eval_only: ask for the same outputs in evaluation mode only. By default they are the same in training mode, too, which keeps
            constants that dropout makes random and those behind a batch normalisation whose running statistics have not settled.

    Returns:
        `Compacted`: the smaller ``model`` (same class, training mode, dtypes, devices, requires_grad; new parameters without
        gradients, so make a new optimizer), what was ``removed``, and what was ``kept`` and why. A reader without a bias gets
        one where there is a constant to take over.

    Raises:
        TypeError: for what is no module, wrappers (pass the module inside), parameters without values, models that are spread over ranks
            (load their full state dict into one that is not).
        ValueError: for a forward that torch.fx cannot trace, or that depends on the sizes of layers; compact its parts one by one then.
        RuntimeError: where outputs for ``example_inputs`` differ.
    """
    _check(model)
    examples = example_inputs if example_inputs is None or isinstance(example_inputs, tuple) else (example_inputs,)
    smaller = copy.deepcopy(model)
    modes = _modes(model, eval_only)
    traces = {mode: _trace(smaller, examples, mode) for mode in modes}
    signatures = {mode: trace.signature() for mode, trace in traces.items()}
    locked = locks.why_locked(smaller, traces.values())
    weights: dict[str, layers.Weights] = {}
    numbers = accounts.Numbers(smaller)
    while True:
        units = Units()
        found = [
            follow(trace, Facts(smaller, units, _training(mode), locked.get, weights)) for mode, trace in traces.items()
        ]
        decision = removal.decide(found, units)
        if not decision.removed:
            break
        numbers.keep(removal.apply(smaller, found, units, decision))
    for mode, signature in signatures.items():
        _same_forward(signature, _trace(smaller, examples, mode).signature())
    if examples is not None:
        _same_outputs(model, smaller, examples)
    closed = {name: reason for trace in traces.values() for name, reason in trace.closed.items()}
    kept = accounts.kept(smaller, found[0], units, decision, locked | closed, numbers)
    before, after = (sum(param.numel() for param in m.parameters()) for m in (model, smaller))
    return Compacted(smaller, numbers.shrunk(smaller), kept, before, after)


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


def _modes(model: nn.Module, eval_only: bool) -> list[str]:
    modes = ["eval"] if eval_only else ["eval", "train"]
    mixed = len({module.training for module in model.modules()}) > 1
    return [*modes, "as it is"] if mixed and not eval_only else modes


def _training(mode: str) -> Callable[[nn.Module], bool]:
    return {"eval": lambda _: False, "train": lambda _: True}.get(mode, lambda module: module.training)


def _is_leaf(module: nn.Module) -> bool:
    """Adds to torch.fx's leaves what must not run on proxies, and what is a layer of torch.nn by another name."""
    known = modules.rule_for(module) is not None or layers.kind_of(module) is not None
    return locks.has_hooks(module) or "forward" in vars(module) or (known and modules.torch_forward(module))


def _trace(model: nn.Module, examples: tuple[Any, ...] | None, mode: str) -> Trace:
    try:
        return Trace(model, examples, _is_leaf, None if mode == "as it is" else mode == "train")
    except Exception as error:
        raise ValueError(
            f"forward of {type(model).__name__} cannot be traced by torch.fx ({one_line(error)}); compact its parts one by one, "
            "as in model.mlp = compact(model.mlp).model, where nothing but these parts uses their inner channels"
        ) from error


def _same_forward(before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]) -> None:
    for old, new in zip_longest(before, after):
        if old != new:
            raise ValueError(
                f"forward depends on the sizes of layers: it computes {old} with the model, and {new} with the smaller one; "
                "compact its parts one by one"
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
