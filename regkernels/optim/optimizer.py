"""The step, once for all optimizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from regkernels import backends, validation
from regkernels.distributed import agreement
from regkernels.dynamo import keep_step_outside_of_graphs, outside_of_graphs
from regkernels.flat import Owners
from regkernels.optim import misspelt, penalty_keys
from regkernels.optim.checkpoint.check import check_state_dict, dictionary
from regkernels.optim.checkpoint.load import fill_missing_options, restore_own_formats, spread_states
from regkernels.optim.options import Checked, Common, Options
from regkernels.optim.penalty_keys import Method, Penalties
from regkernels.optim.stats import Stats
from regkernels.optim.step import exchange, graphs, norms
from regkernels.optim.step.exchange import Exchange
from regkernels.optim.step.plan import Plan, Row
from regkernels.optim.step.scaling import Scaling
from regkernels.optim.step.split_groups import SplitGroups
from regkernels.table.hyper import Hyper, Number

if TYPE_CHECKING:
    from regkernels.optim.release import GradientRelease


class Optimizer(torch.optim.Optimizer):
    """What all optimizers share: one pass over memory for gradient, decay, rule, shrinkage and sums.

    A subclass names its rule per param group and computes a row of hyper-parameters; see `regkernels.optim.SGD` for the
    arguments.
    """

    _counts_steps: ClassVar[bool]
    _totals: tuple[list[Any], Number] | None  # of the last step: sums per device, and what its gradients are scaled by
    _agreed = False  # whether ranks that share parameters have compared their optimizers
    _release: GradientRelease | None = None  # set by `regkernels.optim.step_in_backward`

    def __init__(self, params: Any, defaults: dict[str, Any], common: Common) -> None:
        validation.parameters_argument(params)
        self._options = Options.of(common, type(self).__name__)
        if self._options.amp_scaling:
            self._step_supports_amp_scaling = True  # GradScaler looks for it
        # In a dictionary of its own, which copies of __dict__ (Lightning makes one) share.
        self._trust = {"state": True}
        self._forget_plan()
        defaults.update((key, value) for key, value in common.items() if key in Penalties.__annotations__)
        self._check_options(defaults, "", wait=True)
        super().__init__(params, defaults)
        misspelt.warn_of_overridden(misspelt.given(type(self), defaults), self.param_groups)

    # --- what a subclass says ---

    def _rule(self, group: Mapping[str, Any]) -> str:
        """The rule (a key of `regkernels.reference.RULES`) that ``group`` is updated by."""
        raise NotImplementedError

    def _hyper(self, group: Mapping[str, Any], row: Row) -> dict[str, Number]:
        """The hyper-parameters of a step: fields of `Hyper`."""
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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._release is not None:
            self._release.step()
            return loss
        groups = self.param_groups
        self._check_groups()
        self._exchange.look_back(self)
        scaling = Scaling.handed_over(self) if self._options.amp_scaling else Scaling()
        found = self._current_plans(scaling)
        if found is None:
            return loss
        plans, scaling = found
        plans = [plan for plan in plans if plan.has_rows]
        rows = [plan.rows for plan in plans]
        fields = [[self._fields(row) for row in plan_rows] for plan_rows in rows]
        for plan in plans:
            plan.load_staged()
        if not scaling.has_norm:
            scaling = exchange.with_norm(scaling, self, plans)
        with_stats = self._options.stats
        if scaling.skips and not with_stats:
            return loss
        work = []
        for plan, plan_rows, plan_fields in zip(plans, rows, fields, strict=True):
            own = scaling if backends.is_asynchronous(plan.device) else scaling.on_host()
            scaled = [
                Hyper(
                    **own_fields,
                    scale=-own.factor if groups[row.group]["maximize"] else own.factor,
                    skip=own.skip,
                    seed=float(self._options.precision.seed),
                    step=row.step if plan.draws else 0.0,
                )
                for own_fields, row in zip(plan_fields, plan_rows, strict=True)
            ]
            work.append((plan, own, scaled))
        if self._split and not scaling.skips:
            self._split.step(item for plan, _, scaled in work for item in plan.split_entries(scaled))
        totals: list[Any] = []
        for plan, own, scaled in work:
            batch = plan.batch(plan.rows_of_kernels(scaled))
            totals.append(backends.backend_for(plan.device).update(batch, with_sums=with_stats))
            if not own.skips:
                plan.advance(own.skip)
        self._keep_totals(totals, scaling)
        return loss

    @property
    @outside_of_graphs
    def stats(self) -> Stats | None:
        """The sums of the last step; None before the first one and with ``stats=False``."""
        if self._release is not None:
            return self._release.stats()
        if self._totals is None:
            return None
        device = next((plan.device for plan in self._plans), torch.device("cpu"))
        return Stats.of(*self._totals, len(self.param_groups), device)

    @outside_of_graphs
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients as torch does, except that parameters of a `FlatParameters` keep theirs, zeroed.

        Setting those to None would make backward allocate each anew, and the step could not take them in one piece.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        if not self._owners.zero_grad(params, set_to_none):
            super().zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; keys that it lacks are taken from the defaults. Raises before anything is added."""
        index = len(self.param_groups)
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}; pass {{'params': [...]}}")
        self._check_group({**self.defaults, **param_group}, index, wait=True)
        misspelt.warn_of_keys(param_group, self.defaults.keys() | Penalties.__annotations__.keys(), index)
        super().add_param_group(param_group)
        try:
            validation.unique_parameters(self.param_groups)
            for position, param in enumerate(self.param_groups[index]["params"]):
                name = f"parameter {position} of param group {index}"
                validation.parameter(param, name)
                validation.precision(self._options.precision, param, name)
                penalty_keys.check_parameter(self.param_groups[index], position, param, name)
            self._agreed = False
            if self._release is not None:
                self._release.groups_changed()
        except Exception:
            del self.param_groups[index]
            raise

    # --- state: handed out, saved, loaded ---

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """torch's state dictionary, by parameter.

        Whoever reads it may exchange tensors in it, now or later; from then on every step checks that it did not happen.
        """
        if "state" not in self.__dict__:  # a wrapper that passes attributes on
            raise AttributeError("state")
        self._trust["state"] = False
        return self.__dict__["state"]  # type: ignore[no-any-return]

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict. Tensors are shared with the optimizer, the dictionaries are not."""
        trusted = self._trust["state"]
        packed = super().state_dict()
        if isinstance(packed.get("state"), dict):  # a hook of the user may have made something else of it
            packed["state"] = {k: dict(v) if isinstance(v, dict) else v for k, v in packed["state"].items()}
            self._trust["state"] = trusted
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer or of the torch.optim one of the same name.

        Keys of a param group that are missing there (torch has no ``l1``) keep this optimizer's values. float32 states of
        half-precision weights are taken as they are, where torch would round them to the weights' type.

        Raises:
            TypeError, ValueError: for a state dict that does not fit, naming what does not; nothing is changed then.
        """
        incoming: dict[str, Any] = {}

        def prepare(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            check_state_dict(self, state_dict)
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
        own: dict[str, Any] = {"_options": self._options, "_trust": {"state": False}}
        if self._options.amp_scaling:
            own["_step_supports_amp_scaling"] = True
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_options" not in self.__dict__:
            self._options = Options()
        self._forget_plan()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        incoming = self.__dict__.get("_incoming")
        if incoming is not None:
            restore_own_formats(self.__dict__["state"], incoming, self.param_groups, self._options.precision)

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        keep_step_outside_of_graphs(type(self))

    # --- within a step ---

    def _fields(self, row: Row) -> dict[str, Number]:
        group, method = self.param_groups[row.group], self._methods[row.group]
        fields = self._hyper(group, row)
        return fields if method.penalty == "plain" else {**fields, **penalty_keys.fields(group, method)}

    def _forget_plan(self) -> None:
        self._plans: list[Plan] = []
        self._replaced: dict[torch.device, Plan] = {}
        self._owners = Owners()
        self._move_states = True
        self._exchange, self._split = Exchange(), SplitGroups()
        self._checked = Checked()
        self._methods: list[Method] = []
        self._totals = None

    def _keep_totals(self, totals: list[Any], scaling: Scaling) -> None:
        if not self._options.stats:
            self._totals = None
            return
        if self._split:
            totals = [*totals, self._split.zero_groups(self._exchange.sums, len(self.param_groups))]
        if self._exchange.communicates:
            totals = [self._exchange.totals(self, totals)]
        self._totals = (totals, scaling.inverse_scale)

    def _current_plans(self, scaling: Scaling) -> tuple[list[Plan], Scaling] | None:
        """One per device, and the scaling with what had to be known before they could be built.

        None where the step is left out and would have to create states first.
        """
        groups, state = self.param_groups, self.__dict__["state"]
        methods = self._methods
        check = not self._trust["state"]
        if not self._plans or not all(plan.refresh(groups, methods, state, check_states=check) for plan in self._plans):
            devices = [validation.one_device(group["params"], index) for index, group in enumerate(groups)]
            graphs.not_capturing()
            self._exchange = Exchange(groups, self._options.process_group, self._exchange)
            if not self._agreed:
                agreement.check_first_step(self, self._exchange.sums)
                self._agreed = True
            before = {plan.device: plan for plan in self._plans} or self._replaced
            self._plans, self._replaced = [], before  # not yet valid, should the following fail
            distinct = list(dict.fromkeys(device for device in devices if device is not None))
            # A group that is empty now belongs to the first plan, which notices when it no longer is.
            members = [[i for i, own in enumerate(devices) if (own or distinct[0]) == device] for device in distinct]
            plans = [
                Plan(groups, methods, self._options, state, device, own, before.get(device), self._exchange.sums)
                for device, own in zip(distinct, members, strict=True)
            ]
            self._split = SplitGroups(groups, methods)
            scaling = exchange.before_building(scaling, self, plans)
            if scaling.skips:
                self._keep_totals([*map(norms.sums, plans)] if self._options.stats else [], scaling)
                return None
            for plan in plans:
                plan.build(counts_steps=self._counts_steps, move_states=self._move_states)
            self._plans, self._replaced, self._move_states = plans, {}, False
        graphs.capture([plan.device for plan in self._plans], groups if self._counts_steps else [])
        return self._plans, scaling

    def _check_group(self, group: Mapping[str, Any], index: int, *, wait: bool) -> None:
        self._check_options(group, f" (param group {index})", wait=wait)

    def _check_options(self, group: Mapping[str, Any], where: str, *, wait: bool) -> None:
        validation.regularised_group(group, where, wait=wait)
        penalty_keys.check(group, where, wait=wait)
        self._validate(group, where, wait=wait)

    def _check_groups(self) -> None:
        """Whether all options are allowed, and which methods they ask for."""
        self._methods = self._methods[: len(self.param_groups)]
        for index, group in enumerate(self.param_groups):
            if not self._checked.has(index, group):
                self._check_group(group, index, wait=False)
                for plan in self._plans:
                    plan.check_options(index, group)
                self._checked.add(index, group)
                self._methods[index : index + 1] = [penalty_keys.method_of(group, self._rule(group))]
