"""Holds the arguments that all optimizers share and that have nothing to do with their rule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from regkernels import validation
from regkernels.distributed.agreement import check_process_group
from regkernels.distributed.zero import process_group_of_maker
from regkernels.optim import misspelt, penalty_keys
from regkernels.optim.penalty_keys import Method, Penalties
from regkernels.table.formats import ROUNDINGS, Precision, Rounding
from regkernels.table.hyper import SHRINK_LIMIT

_OF_ALL = ("l1", "l1_mode", "weight_decay", "weight_decay_mode")
"""What no optimizer lacks, though it is no part of `Common`."""


class Common(Penalties, total=False):
    """Names the keyword arguments of every optimizer, beside those of `regkernels.optim.Penalties`, which param groups have, too.

    - ``shrink_limit``: of optimizers that adapt the step of each element (all but SGD and Lion): what a proximal step takes from a
      weight at most, in units of ``lr``, times the gain of momentum; from the norm of a group ``sqrt(size)`` times that.
      Greater than 1, which leaves every fixed point where it is; None: no limit. A key of param groups.
    - ``max_grad_norm``: clips the global norm of all gradients as torch.nn.utils.clip_grad_norm_ does, without touching
      the gradients; None: no clipping.
    - ``stats``: fills ``optimizer.stats``, a `regkernels.optim.Stats`, in each step.
    - ``skip_nonfinite``: a step whose gradients' norm is infinite or NaN is left out as a whole: no weight, no state, no step
      count changes.
    - ``amp_scaling``: lets torch.amp.GradScaler hand its scale, and whether it found NaN or Inf, to the step: the kernel
      divides the gradients, and the host need not wait for the device. A skipped step changes nothing.
    - ``process_group``: a group of ranks, each of which gives this optimizer other parameters, such as stages of a pipeline.
      Within torch.distributed.optim.ZeroRedundancyOptimizer None means its process group. Norms (``max_grad_norm``,
      ``skip_nonfinite``) and ``stats`` are then those of all. Not needed for DTensors, which know their ranks; wrong for DDP,
      whose ranks have the same parameters. It is not saved.
    - ``param_rounding``: of float16 and bfloat16 weights. "nearest"; "stochastic": up or down by chance, so that the mean is
      exact; "remainder" (bfloat16): 16 more bits in the state ``remainder``, so that weight and remainder together are the
      float32 weight of a float32 run; "master": a float32 copy in the state ``master``.
    - ``state_dtype``: torch.bfloat16 stores the rule's states in half the memory, rounded stochastically; None: the compute
      type, float32 or float64.
    - ``seed``: of stochastic rounding, in [0, 2**32). The random numbers depend on it, on the parameter's number, on the
      step and on the element's place, on nothing else: replicas agree, and a resumed run repeats them.
    """

    shrink_limit: float | None
    max_grad_norm: float | None
    stats: bool
    skip_nonfinite: bool
    amp_scaling: bool
    process_group: Any
    param_rounding: Rounding
    state_dtype: torch.dtype | None
    seed: int


class Options(NamedTuple):
    """Holds the arguments of `Common` that belong to no param group, checked."""

    max_grad_norm: float | None = None
    stats: bool = False
    skip_nonfinite: bool = False
    amp_scaling: bool = False
    process_group: Any = None
    precision: Precision = Precision()

    def __deepcopy__(self, memo: Any) -> Options:
        return self  # nothing in it changes, and a process group cannot be copied

    def __reduce__(self) -> Any:
        if self.process_group is not None:
            raise TypeError(
                "an optimizer with a process_group cannot be pickled: other processes have other groups; pickle its "
                "state_dict(), and make the optimizer anew where it is loaded"
            )
        return Options, tuple(self)

    def as_arguments(self) -> dict[str, Any]:
        """Returns them under the names of `Common`."""
        own, precision = self._asdict(), self.precision
        del own["precision"]
        return {
            **own,
            "param_rounding": precision.rounding,
            "state_dtype": precision.state_dtype,
            "seed": precision.seed,
        }

    @property
    def may_skip(self) -> bool:
        """Tells whether only a step's own gradients, or a scaler, say that it is left out."""
        return self.skip_nonfinite or self.amp_scaling

    @property
    def asks_for_norm(self) -> bool:
        """Tells whether a step needs the norm of all gradients."""
        return self.max_grad_norm is not None or self.may_skip

    @classmethod
    def of(cls, common: Mapping[str, Any], optimizer: str) -> Options:
        """Checks the arguments of an ``optimizer``; raises where one is unknown or its value not allowed."""
        for name in common:
            if name not in Common.__annotations__:
                intended = misspelt.meant(name, [*_OF_ALL, *Common.__annotations__])
                hint = f"did you mean {intended}? Beside" if intended else "beside"
                raise TypeError(
                    f"{optimizer} has no argument {name!r}; {hint} its own there are {', '.join(Common.__annotations__)}"
                )
        max_norm = common.get("max_grad_norm")
        rounding, state_dtype = common.get("param_rounding", "nearest"), common.get("state_dtype")
        validation.one_of("param_rounding", rounding, ROUNDINGS)
        validation.one_of("state_dtype", state_dtype, (None, torch.float32, torch.bfloat16))
        return cls(
            None if max_norm is None else validation.nonnegative("max_grad_norm", max_norm),
            bool(common.get("stats", False)),
            bool(common.get("skip_nonfinite", False)),
            bool(common.get("amp_scaling", False)),
            check_process_group(common.get("process_group")) or process_group_of_maker(),
            Precision(rounding, state_dtype, validation.seed(common.get("seed", 0))),
        )


ARGUMENTS = Options().as_arguments()
"""The keyword arguments that belong to no param group, and what they are where nobody gives them."""

DEFAULTS = {"shrink_limit": SHRINK_LIMIT, **ARGUMENTS, **penalty_keys.DEFAULTS}
"""What all keyword arguments of `Common` are where nobody gives them."""


class Checked:
    """Remembers options of param groups that have been checked and are the same objects still, which cannot change, and the method
    that they ask for.

    They need no second look: that would be most of a step's Python for a small model.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[list[Any], Method]] = {}

    def method(self, index: int, group: Mapping[str, Any]) -> Method | None:
        """Returns the method of ``group``, of number ``index``; None unless it has the options that were checked."""
        known = self._known.get(index)
        if known is None or len(group) != len(known[0]) or not all(map(operator.is_, group.values(), known[0])):
            return None
        return known[1]

    def add(self, index: int, group: Mapping[str, Any], values: list[Any], method: Method) -> None:
        """Remembers that the ``values`` of ``group`` were checked, where none of them can change by itself, and their method."""
        self._known.pop(index, None)
        if len(group) == len(values) and all(
            _cannot_change(value) for key, value in zip(group, values, strict=True) if key != "params"
        ):
            self._known[index] = (values, method)


def _cannot_change(value: object) -> bool:
    """Tells whether a value stays what it is as long as it is the same object."""
    if isinstance(value, tuple):
        return all(map(_cannot_change, value))
    return value is None or isinstance(value, (float, int, bool, str))
