"""Writes smaller models to disk and reads them: safetensors, with the plan as JSON in its metadata; nothing is pickled."""

from __future__ import annotations

import copy
import os
from types import ModuleType

from torch import Tensor, nn

from regkernels.structure import plans
from regkernels.structure.plans import Plan

_KEY = "regkernels.compacted"


def save(path: str | os.PathLike[str], model: nn.Module, plan: Plan) -> None:
    """Writes the tensors of ``model`` and how it differs from its original."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in plans.tensors(model).items()}
    _safetensors().save_file(state, os.fspath(path), metadata={_KEY: plan.to_json()})


def load_compacted(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Makes the smaller model that ``compacted.save(path)`` wrote out of one that is built as the original was.

    Args:
        path: a file that `Compacted.save` wrote.
        model: of the original's class and sizes; its values do not matter. Not changed: a deep copy is.

    Returns:
        The smaller model, with the weights of the file, in the dtypes, on the devices and with the training mode of ``model``.

    Raises:
        ValueError: for a file that is truncated or is none of `Compacted.save`, and for a model that it is not of.
        FileNotFoundError: where there is none.
        ImportError: without safetensors.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"there is no file {name}; compacted.save(path) writes one")
    plan, state = _read(name)
    try:
        plans.check_fits(plan, model)
        smaller = copy.deepcopy(model)
        plans.change(plan, smaller, state)
        _check_complete(smaller, state)
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{name} does not fit: {error}") from error
    return smaller


def _read(name: str) -> tuple[Plan, dict[str, Tensor]]:
    # Before "try": without safetensors the file is not to blame.
    library = _safetensors()
    try:
        with library.safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    except Exception as error:
        raise ValueError(
            f"{name} is truncated or no safetensors file ({error}); save it again with compacted.save(path)"
        ) from error
    if _KEY not in metadata:
        raise ValueError(f"{name} has no plan of a compaction; only files of compacted.save(path) can be loaded")
    try:
        return plans.from_json(metadata[_KEY]), state
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _check_complete(smaller: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in plans.tensors(smaller).items():
        if name not in state or state[name].shape != tensor.shape:
            raise ValueError(f"it has no {name} of shape {tuple(tensor.shape)}; {plans.REMEDY}")


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('compacted models are kept as safetensors; pip install "safetensors>=0.5"') from error
    return safetensors.torch
