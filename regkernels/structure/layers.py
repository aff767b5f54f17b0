"""Knows of layers with weights where their inputs and outputs lie, and what they make of constant inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS: dict[type, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED: dict[type, int] = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}


# A linear layer whose weight is (in, out), by name: transformers is not imported.
TRANSPOSED_LINEAR = "transformers.pytorch_utils.Conv1D"


def full_name(module: nn.Module) -> str:
    """Returns the name of a module's class, by which those of packages are known that are not imported."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Names the dimensions of a layer's weight, and the sizes it has as attributes."""

    outputs: int
    inputs: int | None
    spatial: int
    output_size: str
    input_size: str | None
    depthwise: bool = False


def kind_of(module: nn.Module) -> Kind | str | None:
    """Returns the kind of a layer with a weight, a reason why that cannot be told, or None for other modules."""
    if isinstance(module, nn.Linear):
        return Kind(0, 1, 0, "out_features", "in_features")
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            return "renormalises its rows (max_norm)"
        return Kind(1, None, 0, "embedding_dim", None)
    if full_name(module) == TRANSPOSED_LINEAR:
        return Kind(1, 0, 0, "nf", "nx")
    for classes, outputs in ((_CONVOLUTIONS, 0), (_TRANSPOSED, 1)):
        for base, spatial in classes.items():
            if not isinstance(module, base):
                continue
            if module.groups == 1:
                return Kind(outputs, 1 - outputs, spatial, "out_channels", "in_channels")
            if outputs == 0 and module.groups == module.in_channels:
                return Kind(0, 1, spatial, "out_channels", "in_channels", depthwise=True)
            return f"has groups={module.groups}"
    return None


def wide(tensor: Tensor) -> Tensor:
    """Takes a tensor to the CPU, in float64 or complex128."""
    return tensor.detach().to("cpu").to(wide_dtype(tensor))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Returns ``other`` with its channels last, if ``tensor`` has them there; both have as many dimensions."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is not None and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
        return other.contiguous(memory_format=last)
    return other


def pads_with_zeros(module: Any) -> bool:
    """Tells whether places at the border read zeros instead of their neighbours."""
    if isinstance(module, tuple(_TRANSPOSED)):
        return True
    if not isinstance(module, nn.modules.conv._ConvNd) or module.padding_mode != "zeros":
        return False
    return any(module._reversed_padding_repeated_twice)


class Weights:
    """Shows the weight ``of`` a layer as a matrix of outputs by inputs, each entry a kernel."""

    def __init__(self, module: Any, kind: Kind) -> None:
        self.of = module.weight
        weight = module.weight.detach()
        self.dtype = wide_dtype(weight)
        self._weight = weight.transpose(0, 1) if kind.outputs == 1 else weight
        self.nonzero = (self._weight != 0).unsqueeze(-1).flatten(2).any(2).to("cpu")
        """(outputs, inputs): which kernels are not all zeros."""

    def sums(self, inputs: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Sums each kernel: (chosen outputs, chosen inputs)."""
        device = self._weight.device
        rows = self._weight if outputs is None else self._weight[outputs.to(device)]
        return wide(rows[:, inputs.to(device)]).unsqueeze(-1).flatten(2).sum(2)


def bias_of(module: Any, outputs: int) -> Tensor:
    bias = getattr(module, "bias", None)
    if bias is not None:
        return wide(bias).clone()
    return torch.zeros(outputs, dtype=wide_dtype(module.weight))


def constant_outputs(
    module: Any, weights: Weights, known: Tensor, value: Tensor, foldable: Tensor
) -> tuple[Tensor, Tensor]:
    """Tells which outputs are constant, given which inputs are, and their values."""
    known_outputs = ~(weights.nonzero & ~(known & foldable)).any(1)
    result = bias_of(module, len(known_outputs))
    chosen = (known & foldable & (value != 0)).nonzero().flatten()
    # Few, if any: most constant outputs are zero rows, which read nothing.
    rows = (known_outputs & weights.nonzero[:, chosen].any(1)).nonzero().flatten()
    if len(rows):
        result[rows] += weights.sums(chosen, rows) @ value[chosen]
    return known_outputs, torch.where(known_outputs, result, 0)


def constant_outputs_of_depthwise(module: Any, known: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Does the same for one kernel per output; ``known`` and ``value`` have been repeated for each output."""
    weight = module.weight.detach()
    zero = ~(weight != 0).flatten(1).any(1).to("cpu")
    sums = wide(weight).flatten(1).sum(1)
    known = zero | (known & ((value == 0) | (not pads_with_zeros(module))))
    return known, torch.where(known, bias_of(module, len(zero)) + torch.where(zero, 0, sums) * value, 0)


def normalised(module: Any, known: Tensor, value: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Returns what a batch or instance normalisation makes of constant channels.

    With the statistics of the batch a constant channel is its own mean, which leaves the shift. So it is with running statistics that
    have settled; a running mean settles to some units in the last place, which the division by sqrt(eps) would make visible.
    """
    shift = torch.zeros_like(value) if module.bias is None else wide(module.bias).to(value.dtype)
    scale = torch.ones_like(value) if module.weight is None else wide(module.weight).to(value.dtype)
    if training or module.running_mean is None:
        result = shift
    else:
        mean, variance = wide(module.running_mean), wide(module.running_var)
        settled = (value - mean).abs() <= 16 * torch.finfo(module.running_mean.dtype).eps * mean.abs()
        distance = torch.where(settled, 0, value - mean)
        result = distance / (variance + module.eps).sqrt() * scale + shift
    return known | (scale == 0), torch.where(scale == 0, shift, result)
