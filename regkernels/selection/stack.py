"""Keeps the memory of models that are trained together: each of their tensors is one row of a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkernels.memory import own_storage


class Stack:
    """Holds the tensors of K models in stacked memory, of which the models' own tensors and gradients become views.

    Attributes:
        params, buffers: by name, with a first dimension of K.
        gradients: of the parameters that are trained, by name, where autograd adds to them and an optimizer reads them.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.params: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self._views: list[tuple[Tensor, Tensor]] = []  # each model's own parameters with their parts of the gradients
        for name, rows in _by_name(model.named_parameters() for model in models):
            self.params[name] = _moved(rows)
            if rows[0].requires_grad:
                self._train(name, rows)
        self.buffers = {name: _moved(rows) for name, rows in _by_name(model.named_buffers() for model in models)}
        self._slots = [slot for model in models for slot in _slots(model)]
        self._addresses = [tensors[name].data_ptr() for tensors, name in self._slots]
        self._versions = self._own_versions()

    def _train(self, name: str, rows: Sequence[Tensor]) -> None:
        """Makes the stack a leaf of autograd, of whose gradient the models' own gradients are parts."""
        weight = self.params[name].requires_grad_()
        gradient = weight.grad = torch.zeros_like(weight)
        weight.register_post_accumulate_grad_hook(self._check_in_place)
        self.gradients[name] = gradient
        for param, part in zip(rows, gradient.unbind(), strict=True):
            if param.grad is not None:
                part.copy_(param.grad)
            param.grad = part
            self._views.append((param, part))

    def zero_gradients(self) -> None:
        """Zeroes all gradients in place."""
        for gradient in self.gradients.values():
            gradient.zero_()

    def prepare(self) -> None:
        """Makes sure that the models' tensors and gradients are still where autograd and the optimizer meet."""
        if [tensors[name].data_ptr() for tensors, name in self._slots] != self._addresses:
            raise RuntimeError(
                "tensors of the models have been moved out of the stacked memory, as module.to(...), a deepcopy or "
                "load_state_dict(assign=True) does; make a new StackedModels"
            )
        if not torch.is_grad_enabled():
            return
        self.note_changes()
        # optimizer.zero_grad() has set them to None.
        lost = [(param, part) for param, part in self._views if param.grad is not part]
        if len(lost) == len(self._views) and all(param.grad is None for param, _ in lost):
            self.zero_gradients()
        for param, part in lost:
            if param.grad is not None:
                part.copy_(param.grad)
            elif len(lost) != len(self._views):
                part.zero_()
            param.grad = part

    def note_changes(self, _: Tensor | None = None) -> None:
        """Lets autograd see that a step has changed weights which the graph of an earlier forward has saved."""
        versions = self._own_versions()
        if versions != self._versions:
            self._versions = versions
            torch.autograd.graph.increment_version(self.params.values())

    def _own_versions(self) -> list[int]:
        return [param._version for param, _ in self._views]

    def _check_in_place(self, weight: Tensor) -> None:
        if not any(weight.grad is gradient for gradient in self.gradients.values()):
            raise RuntimeError(
                "backward has put a gradient of StackedModels beside the models' own, which the optimizer would not see; "
                "call it without create_graph=True"
            )


def _slots(model: nn.Module) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Finds where a model keeps its tensors: the dictionaries of its modules, with the names in them."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            yield from ((tensors, name) for name, tensor in tensors.items() if tensor is not None)


def _by_name(named: Iterable[Iterable[tuple[str, Tensor]]]) -> list[tuple[str, list[Tensor]]]:
    dictionaries = [dict(pairs) for pairs in named]
    return [(name, [each[name] for each in dictionaries]) for name in dictionaries[0]]


def _moved(rows: Sequence[Tensor]) -> Tensor:
    """Stacks tensors, which become views of the stack."""
    stacked = torch.stack([row.detach() for row in rows])
    for row, part in zip(rows, stacked.unbind(), strict=True):
        row.data = own_storage(part.flatten()).view(part.shape)
    return stacked
