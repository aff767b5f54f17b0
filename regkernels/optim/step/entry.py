"""Describes one parameter of a step as the kernels see it: an entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkernels import reference
from regkernels.distributed import index, shards
from regkernels.distributed.shards import held
from regkernels.memory import empty_dense, has_layout, in_layout_of, is_dense
from regkernels.optim.penalty_keys import Method
from regkernels.reference.kinds import Kind
from regkernels.table import segments
from regkernels.table.batch import Operands
from regkernels.table.formats import Format
from regkernels.table.grouping import GroupLayout, group_layout
from regkernels.table.segments import Runs, Segment


@dataclass(eq=False)
class Entry:
    """Holds one parameter that is updated, as real, dense tensors: of one that is spread over ranks, what this rank holds.

    A parameter that is not dense, is complex or a negated view, or has a gradient of another layout or spread otherwise is
    *staged*: the kernels work on dense copies of weight and gradient, and the weight is copied back after the step.
    """

    param: Tensor
    group: int  # index of its param group
    method: Method
    name: str  # for messages
    number: int  # among all parameters of the optimizer
    format: Format
    state: dict[str, Any]  # the optimizer's dictionary of this parameter
    staged: bool
    before: InitVar[Entry | None] = None  # whose buffers to use again
    split: bool = False  # its groups lie on several ranks, and a kernel is not to update it
    total: int = 0  # which total its sums are added to
    first: bool = False  # the momentum buffer was created for this step
    grad: Tensor | None = None  # the parameter's, while a step works with it, whoever takes it away from the parameter
    weight: Tensor = field(init=False)  # what the kernels work on
    gradient: Tensor | None = None  # the same for a staged gradient
    l1_weight: Tensor | None = None  # in the layout of `weight`
    made: dict[str, Tensor] = field(default_factory=dict)  # what is going to stand in `state`
    states: list[Tensor] = field(default_factory=list)  # those of `state_names`
    runs: Runs | None = None  # places in the whole parameter, of what draws random numbers; None for 0, 1, 2, ...
    layout: GroupLayout = field(init=False)  # of its groups; zeros where nothing goes by groups
    gap: int = 0  # see `regkernels.table.segments.Segment`
    _weight: Tensor = field(init=False, repr=False)  # of a staged parameter, complex where it is
    _gradient: Tensor = field(init=False, repr=False)
    _address: int = field(init=False, repr=False)  # of what is staged
    _redistributed: tuple[Tensor, Tensor] | None = field(default=None, repr=False)  # a gradient, and what it became

    def __post_init__(self, before: Entry | None) -> None:
        own = self.own
        self.shape, self.strides = own.shape, own.stride()
        if self.staged:
            if before is not None and before.fits(own):
                self._weight, self._gradient = before._weight, before._gradient
            else:
                self._weight = empty_dense(own)
                self._gradient = torch.empty_like(self._weight)
            self._address = own.data_ptr()
            self.weight, self.gradient = real(self._weight), real(self._gradient)
        else:
            self.weight = own
        if self.format.draws:
            self.runs = index.runs(self.param, self.weight)
        self.layout = GroupLayout(0, 0, 0)
        if self.by_groups:
            layout = group_layout(self.weight, self.method.dim, self.method.size)  # type: ignore[arg-type]
            self.layout, self.gap = index.by_groups(self.runs, layout, self.name)

    @property
    def own(self) -> Tensor:
        """Returns the parameter's memory on this rank."""
        return held(self.param).detach()

    @property
    def rule(self) -> str:
        """Names the optimizer rule that updates the parameter."""
        return self.method.rule

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names the rule's states, and last what the rounding keeps."""
        names = reference.RULES[self.rule].state_names
        return names if self.format.kept is None else (*names, self.format.kept)

    @property
    def tensors(self) -> list[Tensor]:
        """Returns the rule's states as the kernels see them."""
        return [real(held(tensor)) for tensor in self.states[: len(reference.RULES[self.rule].state_names)]]

    @property
    def kept(self) -> Tensor | None:
        """Returns the state that the rounding keeps; None where it keeps none."""
        return None if self.format.kept is None else held(self.states[-1])

    @property
    def kind(self) -> Kind:
        """Says which kernel updates it."""
        return Kind(self.rule, self.weight.dtype, self.format.rounding, self.format.narrow, self.method.penalty)

    @property
    def stream(self) -> int:
        """Returns what tells its random numbers from others'; the same for all that need none, so that they can be merged."""
        return self.number if self.format.draws else 0

    @property
    def by_groups(self) -> bool:
        """Tells whether groups of its weights are shrunk as a whole."""
        return self.method.penalty == "group"

    @property
    def place(self) -> int:
        """Returns the place of its first element in the whole parameter."""
        return 0 if self.runs is None else int(self.runs.places[0])

    @property
    def is_cut(self) -> bool:
        """Tells whether it makes a segment of each run. What goes by groups does not: the distance of its runs is in the table."""
        return self.runs is not None and len(self.runs.places) > 1 and not self.by_groups

    @property
    def pieces(self) -> Runs:
        """Returns the runs of which it makes a segment each."""
        if self.runs is None or not self.is_cut:
            return Runs.one(self.place, self.weight.numel())
        return self.runs

    @property
    def places(self) -> Tensor | int:
        """Returns the places of its elements in the whole parameter, as `regkernels.reference.random_bits` takes them."""
        return self.place if self.runs is None or len(self.runs.places) == 1 else self.runs.of_elements()

    def operands(self, row: int) -> Operands:
        """Returns what eager torch works on, with hyper-parameters from a row of a batch."""
        return Operands(
            self.rule,
            self.weight,
            self.gradient_to_read(),
            self.tensors,
            row,
            self.total,
            self.format.rounding,
            self.kept,
            self.stream,
            self.places,
            self.method.penalty,
            self.l1_weight,
            self.layout if self.by_groups else None,
        )

    def use_l1_weight(self, given: Tensor) -> None:
        """Takes the weights of an l1 where they lie, or a copy of them in the weight's layout."""
        self.l1_weight = in_layout_of(held(given).detach(), self.weight)

    def gradient_to_read(self) -> Tensor:
        """Returns what kernels read: the gradient itself, or the copy of a staged one."""
        grad = self.gradient if self.staged else self.grad
        assert grad is not None
        return held(grad)

    def gradient_at_hand(self) -> Tensor:
        """Returns this rank's part of the gradient as it was found at the parameter.

        Where that is spread otherwise than the weight, it is redistributed, which takes the ranks of its mesh: once a step,
        as a rank alone may have to look at it twice.
        """
        grad = self.grad
        assert grad is not None
        if shards.is_spread_alike(grad, self.param):
            return held(grad).detach()
        if self._redistributed is None or self._redistributed[0] is not grad:
            self._redistributed = grad, held(shards.spread_as(grad, self.param)).detach()
        return self._redistributed[1]

    def load(self) -> None:
        """Copies weight and gradient of a staged parameter into its buffers, before the kernels."""
        self._weight.copy_(self.own)
        self._gradient.copy_(self.gradient_at_hand())
        self._redistributed = None

    def save(self) -> None:
        """Copies the weight of a staged parameter back, after the kernels."""
        self.own.copy_(self._weight)

    def fits(self, own: Tensor) -> bool:
        """Tells whether the buffers are such as a staged parameter would get whose memory on this rank is ``own``."""
        buffer = self._weight
        return (own.shape, own.stride(), own.dtype, own.device) == (
            self.shape,
            self.strides,
            buffer.dtype,
            buffer.device,
        )

    def moved(self) -> bool:
        """Tells whether a staged parameter lies elsewhere or otherwise: it may overlap now, itself or another one."""
        own = self.own
        return own.data_ptr() != self._address or not self.fits(own)

    def can_use(self, name: str) -> bool:
        """Tells whether the kernels can use the state ``name`` where it lies."""
        state = self.state.get(name)
        if state is None or not shards.is_spread_alike(state, self.param):
            return False
        own, state = self.own, held(state)
        if state.dtype != self.format.dtype_of(name) or state.device != own.device or state.requires_grad:
            return False
        if state.is_neg() or state.is_conj():  # its memory is to be read otherwise
            return False
        if self.staged and not is_dense(own):
            return state.shape == own.shape and state.is_contiguous()
        return has_layout(state, own)


def table_of(entries: Sequence[Entry]) -> Tensor:
    """Returns a table with a segment for each entry: int64, (entries, len(segments.FIELDS)). The column ``row`` is 0 yet."""
    listed = []
    for entry in entries:
        gradient = 0
        if entry.grad is not None:
            gradient = entry.gradient_to_read().data_ptr() if entry.weight.numel() else segments.EMPTY
        state0, state1, state2 = segments.addresses(entry.tensors)
        listed.append(
            Segment(
                weight=entry.weight.data_ptr(),
                gradient=gradient,
                state0=state0,
                state1=state1,
                state2=state2,
                kept=0 if entry.kept is None else entry.kept.data_ptr(),
                l1_weight=0 if entry.l1_weight is None else entry.l1_weight.data_ptr(),
                numel=entry.weight.numel(),
                total=entry.total,
                stream=entry.stream,
                place=entry.place,
                gap=entry.gap,
                groups=entry.layout.groups,
                inner=entry.layout.inner,
                kind=entry.kind.number,
            )
        )
    return segments.table(listed)


def real(tensor: Tensor) -> Tensor:
    """Returns a complex tensor as pairs of real numbers, which is how torch.optim updates it; others as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def parameter_name(group: Mapping[str, Any], index: int, position: int) -> str:
    """Says what messages call a parameter of a param group."""
    name = f"parameter {position} of param group {index}"
    return f"{name} ({group['param_names'][position]})" if group.get("param_names") else name


def parameter_numbers(groups: Iterable[Mapping[str, Any]]) -> list[Sequence[int]]:
    """Returns the parameters' numbers, which random numbers depend on; parts of a larger optimizer say which they are there."""
    found: list[Sequence[int]] = []
    begin = 0
    for group in groups:
        end = begin + len(group["params"])
        given = group.get("param_numbers")
        found.append(range(begin, end) if given is None else given)
        begin = end
    return found
