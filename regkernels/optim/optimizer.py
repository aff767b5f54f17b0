"""Holds the class that all optimizers derive from, which keeps torch's contract once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self, overload

import torch

from regkernels import validation
from regkernels.distributed.agreement import Described
from regkernels.dynamo import outside_of_graphs
from regkernels.flat import Owners
from regkernels.optim import effects, misspelt, penalty_keys, signature
from regkernels.optim.checkpoint.check import check_state_dict, dictionary
from regkernels.optim.checkpoint.load import fill_missing_options, spread_states, take_states
from regkernels.optim.checkpoint.memory import check_memory_of_states
from regkernels.optim.contract import Contract, evaluated
from regkernels.optim.group_keys import refuse_keys
from regkernels.optim.options import DEFAULTS, Common, Options
from regkernels.optim.penalty_keys import Penalties
from regkernels.optim.stats import Stats
from regkernels.optim.step.protocol import Row
from regkernels.optim.step.scaling import Scaling
from regkernels.optim.step.stepper import Stepper
from regkernels.table.hyper import Number


class Substitute(Protocol):
    """Makes the steps in an optimizer's place, as `regkernels.optim.step_in_backward` does."""

    def step(self) -> None:
        """Updates what has a gradient."""

    def stats(self) -> Stats | None:
        """Returns the sums of the last step."""

    def groups_changed(self) -> None:
        """Is called when a param group was added; may refuse it by raising ValueError."""


class Optimizer(Contract):
    """Does what all optimizers share: one pass over memory for gradient, decay, rule, shrinkage and sums.

    A subclass names its rule per param group and computes a row of hyper-parameters; see `regkernels.optim.SGD` for the
    arguments.
    """

    _counts_steps: ClassVar[bool]
    _substitute: Substitute | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        signature.spell_out(cls)

    def __init__(self, params: Any, defaults: dict[str, Any], common: Common) -> None:
        validation.parameters_argument(params)
        self._begin(Options.of(common, type(self).__name__))
        defaults["shrink_limit"] = common.get("shrink_limit", DEFAULTS["shrink_limit"])
        defaults.update((key, value) for key, value in common.items() if key in Penalties.__annotations__)
        self._check_options(defaults, "", wait=True)
        super().__init__(params, defaults)
        misspelt.warn_of_overridden(misspelt.given(type(self), defaults), self.param_groups)

    # --- what a subclass says; see `regkernels.optim.step.protocol.Rules` ---

    def _rule(self, group: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        raise NotImplementedError

    def _validate(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        """Raises where a key of ``group`` beyond the common ones has a value that is not allowed.

        ``wait``: also where that takes waiting for a device to hand out the value.
        """
        raise NotImplementedError

    # --- torch's contract ---

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient, in one call of a kernel.

        Mutates the parameters and their states; gradients are read only. ``closure`` is evaluated first, with gradients
        enabled, and what it returns is returned. Raises before anything is changed where a hyper-parameter or a gradient
        is not allowed.
        """
        loss = evaluated(closure)
        if self._substitute is not None:
            self._substitute.step()
            return loss
        stepper = self._stepper
        scaling = Scaling.handed_over(self) if stepper.options.amp_scaling else Scaling()
        stepper.step(self, self.param_groups, self.__dict__["state"], scaling)
        return loss

    @property
    @outside_of_graphs
    def stats(self) -> Stats | None:
        """Returns the sums of the last step; None before the first one. There is none without ``stats=True``."""
        if (
            not self._stepper.options.stats
        ):  # an AttributeError, so that hasattr and getattr with a default do what they say
            raise AttributeError(f"stats: {type(self).__name__} was not asked for sums; make it with stats=True")
        return self._stepper.stats(len(self.param_groups)) if self._substitute is None else self._substitute.stats()

    @outside_of_graphs
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients as torch does, except that parameters of a `FlatParameters` keep theirs, zeroed.

        Setting those to None would make backward allocate each anew, and the step could not take them in one piece.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        if not self._owners.zero_grad(params, set_to_none):
            super().zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group; keys that it lacks are taken from the defaults. Raises before anything is added."""
        index = len(self.param_groups)
        validation.param_group_argument(param_group)
        # Wrappers such as ZeroRedundancyOptimizer write all arguments of the optimizer into its groups, too.
        arguments = self._stepper.options.as_arguments().items()
        repeated = [key for key, value in arguments if key in param_group and param_group[key] == value]
        refuse_keys(param_group.keys() - {"params"}, [*self.defaults, *repeated], f"param group {index}")
        self._check_options({**self.defaults, **param_group}, f" (param group {index})", wait=True)
        misspelt.warn_of_keys(param_group, self.defaults.keys() | Penalties.__annotations__.keys(), index)
        super().add_param_group(param_group)
        try:
            validation.unique_parameters(self.param_groups)
            for position, param in enumerate(self.param_groups[index]["params"]):
                if not validation.is_trained(param):
                    continue
                name = f"parameter {position} of param group {index}"
                validation.parameter(param, name)
                validation.precision(self._stepper.options.precision, param, name)
                penalty_keys.check_parameter(self.param_groups[index], position, param, name)
            self._stepper.groups_changed()
            if self._substitute is not None:
                self._substitute.groups_changed()
        except Exception:
            del self.param_groups[index]
            raise
        remedy = 'make the optimizer with param_rounding="stochastic", "master" or, for bfloat16, "remainder"'
        *earlier, added = self.param_groups
        effects.warn_of_rounding(added, self._stepper.options.precision.rounding, earlier, remedy)
        effects.warn_of_no_limit(added)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer or of the torch.optim one of the same name.

        Keys of a param group that are missing there (torch has no ``l1``) keep this optimizer's values. float32 states of
        half-precision weights are taken as they are, where torch would round them to the weights' type.

        Raises:
            TypeError, ValueError: for a state dict that does not fit, naming what does not; nothing is changed then.
        """
        incoming: dict[str, Any] = {}

        def prepare(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            check_memory_of_states(state_dict)
            check_state_dict(self, self.param_groups, state_dict)
            state_dict = spread_states(state_dict, self.param_groups)
            incoming.update(state_dict)
            return {**state_dict, "param_groups": fill_missing_options(state_dict["param_groups"], self.param_groups)}

        self._incoming = incoming
        hook = self.register_load_state_dict_pre_hook(prepare)  # the last to run: it sees what the user's hooks made
        try:
            super().load_state_dict(dictionary(state_dict))
        finally:
            hook.remove()
            del self._incoming

    def __getstate__(self) -> dict[str, Any]:
        # Reading the state ends the trust in it, here and in the copy: a shallow copy works on the same dictionaries.
        return {**super().__getstate__(), "_options": self._stepper.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {key: value for key, value in state.items() if key != "_trust"}  # which version 0.1 pickled
        options = state.pop("_options", None)
        # With options it is a copy, or was pickled: somebody else may have the states. Without them, they were loaded.
        if options is not None or "_stepper" not in self.__dict__:
            self._begin(options or Options(), trusted=False)
        else:
            self._forget()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        incoming = self.__dict__.get("_incoming")
        if incoming is not None:
            precision = self._stepper.options.precision
            take_states(self.__dict__["state"], incoming, self.param_groups, precision)

    # --- who makes the step ---

    def _described(self) -> Described:
        return self._stepper.described(self, self.param_groups)

    def _check_options(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        """Raises where an option of a param group has a value that is not allowed; see `regkernels.optim.step.protocol.Rules`."""
        validation.regularised_group(group, where, wait=wait)
        penalty_keys.check(group, where, wait=wait)
        self._validate(group, where, wait=wait)

    # --- for those who make its steps, or steps of a part of it ---

    def _step_by(self, substitute: Substitute | None) -> None:
        """Lets ``substitute`` make the steps from now on; None: the optimizer itself. What it knew is forgotten."""
        self._stepper.forget()
        self._substitute = substitute

    def _step_was_made(self) -> None:
        """Is to be called by a `Substitute`: schedulers of torch warn where they do not see a step."""
        self._opt_called = True

    def _part(self, groups: list[dict[str, Any]]) -> Self:
        """Makes an optimizer of this class for ``groups`` of some parameters, on the same dictionary of states.

        Its ``step`` is that of the class, with the hooks of all optimizers; the stepper is its own.
        """
        trusted = self._stepper.trust.holds
        part = copy.copy(self)
        self._stepper.trust.holds = trusted  # copying reads the state, but hands it to nobody else
        part._stepper = Stepper(self._stepper.options, self._stepper.trust, is_part=True)
        part.param_groups = groups
        return part

    def _begin(self, options: Options, *, trusted: bool = True) -> None:
        """Makes a stepper. ``trusted``: nobody else can have the dictionary of states."""
        self._stepper = Stepper(options)
        self._stepper.forget(loaded=not trusted)
        self._stepper.trust.holds = trusted
        self._owners = Owners()
        self._announce_scaling()

    def _forget(self) -> None:
        """Lets the next step look at everything anew, after loading."""
        self._stepper.forget(loaded=True)
        self._owners = Owners()
