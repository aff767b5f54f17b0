"""Makes one step over all parameters: says what it updates, what scales gradients, and who computes it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regkernels import backends, turns, validation
from regkernels.distributed import agreement
from regkernels.distributed.agreement import Described
from regkernels.dynamo import outside_of_graphs
from regkernels.optim import penalty_keys
from regkernels.optim.options import Checked, Options
from regkernels.optim.penalty_keys import Method
from regkernels.optim.stats import Stats
from regkernels.optim.step import exchange, fake, graphs, norms
from regkernels.optim.step.exchange import Exchange
from regkernels.optim.step.plan import Plan
from regkernels.optim.step.protocol import Row, Rules
from regkernels.optim.step.scaling import Scaling
from regkernels.optim.step.split_groups import SplitGroups
from regkernels.table.hyper import Hyper, Number, Scalar

Groups = Sequence[Mapping[str, Any]]
State = MutableMapping[Any, Any]


class Trust:
    """Says whether nobody else can have exchanged tensors in a dictionary of states; shared by all who step with that.

    Attributes:
        holds: whether it is so, and the dictionary need not be looked at.
        lent: whether somebody else may have the tensors, though not the dictionary: they are looked at until that is over.
    """

    def __init__(self) -> None:
        self.holds = True
        self.lent = False


class Stepper:
    """Makes the steps of an optimizer, or of a part of its parameters.

    Keeps what can be used again from one step to the next: a plan per device, the options that were looked at. What is
    stepped, param groups and the dictionary of states, is handed in with each step.

    Attributes:
        options: arguments of the optimizer that belong to no param group.
        trust: of the dictionary of states.
        count_blocks: where step counts lie side by side that were made before the first step.
    """

    def __init__(self, options: Options, trust: Trust | None = None, *, is_part: bool = False) -> None:
        """Begins without plans. ``is_part``: of another optimizer: states stay where they are, other ranks know nothing of it."""
        self.options = options
        self._arguments = options._replace(process_group=None)  # as ranks compare them: each has a group of its own
        self.trust = Trust() if trust is None else trust
        self.count_blocks: list[Tensor] = []
        self._is_part = is_part
        self._agreed = is_part  # whether ranks that share parameters have compared their optimizers
        self._lock = turns.lock()
        self._holding: list[Plan] = []  # plans that have the gradients of the running step
        self.forget()

    def forget(self, *, loaded: bool = False) -> None:
        """Begins anew. ``loaded``: nobody else has the states: step counts are brought together with the next step."""
        with self._lock:  # a step of another thread goes on with what it has
            self._forget(loaded)

    def _forget(self, loaded: bool) -> None:
        self.plans: list[Plan] = []
        self._replaced: dict[torch.device, Plan] = {}
        self._move_counts = loaded
        self._exchange, self._split = Exchange(), SplitGroups()
        self._checked = Checked()
        self._methods: list[Method] = []
        # Of the last step: sums per device, and what its gradients are scaled by.
        self._totals: tuple[list[Any], Scalar] | None = None

    def finish(self) -> None:
        """Does what an interrupt has left of a step whose kernels were over."""
        for plan in self.plans:
            plan.finish()

    def groups_changed(self) -> None:
        """Notes that param groups were added: ranks compare their optimizers anew."""
        self._agreed = self._is_part

    def stats(self, groups: int) -> Stats | None:
        """Returns the sums of the last step; None before the first one and where nobody asked for them."""
        if self._totals is None:
            return None
        device = next((plan.device for plan in self.plans), torch.device("cpu"))
        return Stats.of(*self._totals, groups, device)

    def described(self, rules: Rules, groups: Groups) -> Described:
        """Returns what ranks compare of the optimizer ``rules``."""
        return Described(type(rules).__name__, self._arguments, groups)

    @outside_of_graphs
    def step(self, rules: Rules, groups: Groups, state: State, scaling: Scaling) -> None:
        """Updates every parameter that has a gradient. Raises before anything is changed.

        ``scaling``: what gradients are multiplied by so far. Threads take turns. What is a gradient when a step begins to look at
        them stays one to its end, whoever takes it away from its parameter meanwhile.
        """
        if self._lock._is_owned():
            turns.refuse_within(Stepper._step, self, self._lock)
        with self._lock:
            try:
                self._step(rules, groups, state, scaling)
            finally:
                for plan in self._holding:
                    plan.release()
                self._holding = []

    def _step(self, rules: Rules, groups: Groups, state: State, scaling: Scaling) -> None:
        self.check_groups(rules, groups)
        described = self.described(rules, groups)
        self._exchange.look_back(described)
        found = self._current_plans(rules, groups, state, scaling, described)
        if found is None:
            return
        plans, scaling = found
        for plan in plans:
            if not plan.active.has_rows:
                plan.publish()
        plans = [plan for plan in plans if plan.active.has_rows]
        rows = [plan.active.rows for plan in plans]
        fields = [[self._fields(rules, groups, row) for row in plan_rows] for plan_rows in rows]
        for plan in plans:
            plan.load_staged()
        if not scaling.has_norm:
            scaling = exchange.with_norm(scaling, self.options, self._exchange, described, plans)
        if scaling.skips and not self.options.stats:
            return
        work = []
        for plan, plan_rows, plan_fields in zip(plans, rows, fields, strict=True):
            own = scaling.on(plan.device)
            scaled = [
                Hyper.of(
                    {
                        **own_fields,
                        "scale": -own.factor if groups[row.group]["maximize"] else own.factor,
                        "skip": own.skip,
                        "seed": float(self.options.precision.seed),
                        "step": row.step % 2**32 if plan.draws else 0.0,  # random numbers begin anew there
                    }
                )
                for own_fields, row in zip(plan_fields, plan_rows, strict=True)
            ]
            work.append((plan, own, scaled))
        if self._split and not scaling.skips:
            self._split.step(
                item for plan, _, scaled in work for item in plan.active.split_entries(scaled, plan.device)
            )
        totals: list[Any] = []
        for plan, own, scaled in work:
            batch = plan.batch(plan.active.rows_of_kernels(scaled), None if own.skips else own.skip)
            totals.append(backends.backend_for(plan.device).update(batch, with_sums=self.options.stats))
            if not own.skips:
                plan.made(own.skip)
                plan.finish()
        self._keep_totals(totals, scaling, len(groups), described)

    def check_groups(self, rules: Rules, groups: Groups) -> None:
        """Raises where an option is not allowed, and finds which methods the options ask for."""
        methods = []
        for index, group in enumerate(groups):
            method = self._checked.method(index, group)
            if method is None:
                values = list(group.values())  # before the check: what is set meanwhile is looked at in the next step
                rules._check_options(group, f" (param group {index})", wait=False)
                for plan in self.plans:
                    plan.check_options(index, group)
                method = penalty_keys.method_of(group, rules._rule(group))
                self._checked.add(index, group, values, method)
            methods.append(method)
        self._methods = methods

    def _fields(self, rules: Rules, groups: Groups, row: Row) -> dict[str, Number]:
        """Returns the fields of `Hyper` that a rule and its penalty fill."""
        group, method = groups[row.group], self._methods[row.group]
        fields = rules._hyper(group, row)
        return fields if method.penalty == "plain" else {**fields, **penalty_keys.fields(group, method)}

    def _keep_totals(self, totals: list[Any], scaling: Scaling, groups: int, described: Described) -> None:
        """Remembers the sums of a step for `stats`, over all ranks."""
        if not self.options.stats:
            self._totals = None
            return
        if self._split:
            totals = [*totals, self._split.zero_groups(self._exchange.sums, groups)]
        if self._exchange.communicates:
            totals = [self._exchange.totals(self.options, described, totals)]
        self._totals = (totals, scaling.inverse_scale)

    def _current_plans(
        self, rules: Rules, groups: Groups, state: State, scaling: Scaling, described: Described
    ) -> tuple[list[Plan], Scaling] | None:
        """Returns a plan per device, and the scaling with what had to be known before they could be built.

        None where the step is left out and would have to create states first, or where nothing has values.
        """
        self.finish()
        trust = self.trust
        check = trust.lent or not trust.holds
        self._holding = self.plans
        if not self.plans or not all(
            plan.refresh(groups, self._methods, state, check_states=check) for plan in self.plans
        ):
            if fake.is_fake(groups):
                fake.step(groups, self._methods, self.options, state, counts_steps=rules._counts_steps)
                self._totals = None
                return None
            plans = self._new_plans(groups, state, described)
            self._holding = [*self._holding, *plans]
            scaling = exchange.before_building(scaling, self.options, self._exchange, described, plans)
            if scaling.skips:
                sums = [*map(norms.sums, plans)] if self.options.stats else []
                self._keep_totals(sums, scaling, len(groups), described)
                return None
            for plan in plans:
                plan.build(
                    counts_steps=rules._counts_steps, move_counts=self._move_counts, count_blocks=self.count_blocks
                )
            self.plans, self._replaced, self._move_counts = plans, {}, False
        if trust.lent:
            alone = [plan.has_states_alone() for plan in self.plans]
            trust.lent = False in alone
            trust.holds = trust.holds and None not in alone
        graphs.capture([plan.device for plan in self.plans], groups if rules._counts_steps else [])
        return self.plans, scaling

    def _new_plans(self, groups: Groups, state: State, described: Described) -> list[Plan]:
        """Makes plans that are not built yet; what they replace is remembered until they are."""
        devices = [validation.one_device(group["params"], index) for index, group in enumerate(groups)]
        graphs.not_capturing()
        self._exchange = Exchange(groups, self.options.process_group, self._exchange)
        if not self._agreed:
            agreement.check_first_step(described, self._exchange.sums, self.options.process_group)
            self._agreed = True
        before = {plan.device: plan for plan in self.plans} or self._replaced
        self.plans, self._replaced = [], before  # not yet valid, should the following fail
        distinct = list(dict.fromkeys(device for device in devices if device is not None))
        # A param group that is empty now belongs to the first plan, which notices when it no longer is.
        members = [[i for i, own in enumerate(devices) if (own or distinct[0]) == device] for device in distinct]
        plans = [
            Plan(groups, self._methods, self.options, state, device, own, before.get(device), self._exchange.sums)
            for device, own in zip(distinct, members, strict=True)
        ]
        self._split = SplitGroups(groups, self._methods)
        return plans
