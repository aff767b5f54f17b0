"""An optimizer on the CPU for a model on an accelerator."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from regkernels import validation
from regkernels.dynamo import keep_step_outside_of_graphs, outside_of_graphs
from regkernels.optim.adamw import AdamW
from regkernels.optim.checkpoint.check import dictionary
from regkernels.optim.offload.mirror import Twin, twins_of
from regkernels.optim.offload.param_groups import Handover, listed, named, on_cpu, refuse_capturable
from regkernels.optim.offload.pinned import Lane
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.stats import Stats
from regkernels.optim.step.entry import parameter_name


class CPUOffload(torch.optim.Optimizer):
    """Keeps an optimizer of `regkernels.optim` on the CPU, for parameters on an accelerator.

    Of the optimizer nothing is left on the device: states, copies in higher precision and the kernels are on the CPU. A
    step copies gradients to the CPU, updates there, and copies the new weights back. To the outside it is an optimizer like
    any other: param groups hold the parameters on the device, state dicts are those of ``optimizer_class`` and load both
    ways, schedulers and GradScaler work. Weights and states are, bit for bit, those of ``optimizer_class`` itself on the CPU.

    The CPU holds, per parameter, a weight and a gradient of the parameter's type (page-locked memory) and the states: for
    AdamW 16 bytes per element with float32 weights, and as many with bfloat16 ones (2 + 2, a float32 master, two moments).
    For a frozen parameter nothing is locked.

    Args:
        params: as for ``optimizer_class``: float64, float32, float16, bfloat16 or complex, any shape and strides, on one
            device or several; DTensors, of which the CPU has the same shards. ``l1_weights`` may be on either side.
        optimizer_class: one of `regkernels.optim`.
        free_gradients: False: ``backward`` leaves gradients in ``param.grad``, and the step copies them from there, whatever
            was done to them. True: each gradient is copied as soon as it is complete, while the backward pass is still
            running, and ``param.grad`` is set to None, so that the device never holds all of them. Further backwards add
            up on the CPU, in the parameter's type as autograd does. ``step`` uses the gradients up; ``zero_grad`` drops
            them (that of the model does not know of them). Nobody else finds gradients then: clip with
            ``max_grad_norm``. With several processes, gradients that are not FSDP2's are copied and freed by the step,
            since they have yet to be reduced when their hooks run.
        options: everything else that ``optimizer_class`` takes: ``lr``, ``l1``, ``max_grad_norm``, ``skip_nonfinite``, ...
            One default is another: ``param_rounding="master"``, so that half-precision weights on the device are those of a
            float32 copy on the CPU, rounded.

    Raises:
        TypeError, ValueError: as ``optimizer_class`` does; for ``capturable``, for ``amp_scaling`` together with
            ``free_gradients`` and for parameters of a `regkernels.FlatParameters`. Nothing is changed then.

    A weight that somebody sets is copied to the CPU before the next step, as an optimizer on the device would see it.
    Only writing into ``param.data`` leaves no trace: call `read_weights` then.
    """

    _inner: Optimizer

    def __init__(
        self,
        params: Any,
        optimizer_class: type[Optimizer] = AdamW,
        *,
        free_gradients: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer_class, type) or not issubclass(optimizer_class, Optimizer):
            raise TypeError(
                f"optimizer_class must be a class of regkernels.optim, such as regkernels.optim.AdamW, got {optimizer_class!r}"
            )
        if not isinstance(free_gradients, bool):
            raise TypeError(f"free_gradients must be True or False, got {free_gradients!r}")
        if free_gradients and options.get("amp_scaling"):
            raise ValueError(
                "amp_scaling=True cannot be had with free_gradients=True: torch.amp.GradScaler looks for Inf in gradients on "
                "the device, and there are none. Use bfloat16, which needs no scaler, or free_gradients=False"
            )
        validation.parameters_argument(params)
        self._free = free_gradients
        self._begin()
        groups = listed(params)
        refuse_capturable({**options, **group} for group in groups)
        twins = self._twins_of(groups)
        inner = optimizer_class([on_cpu(group, twins) for group in groups], **{"param_rounding": "master", **options})
        super().__init__(groups, dict(inner.defaults))
        self._take_on(inner, twins)

    # --- torch's contract ---

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient; see the step of ``optimizer_class``.

        The host waits for the gradients. It does not wait for the new weights: what the current stream does next will see
        them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._align()
        updated = self._gather()
        if self._inner._options.amp_scaling:
            for name in ("grad_scale", "found_inf"):
                value = self.__dict__.get(name)
                setattr(self._inner, name, value.cpu() if isinstance(value, Tensor) else value)
        before = [twin.host._version for twin in updated]
        self._inner.step()
        sent = [twin for twin, version in zip(updated, before, strict=True) if twin.host._version != version]
        for twin in sent:
            twin.send_weight()
        for lane in {twin.lane for twin in sent}:
            lane.sent()
        if self._free:
            for twin in updated:
                twin.drop()
        self._publish(updated)
        return loss

    @property
    def _options(self) -> Any:  # what ranks compare
        return self._inner._options

    @property
    @outside_of_graphs
    def stats(self) -> Stats | None:
        """The sums of the last step, on the CPU; None before the first one and with ``stats=False``."""
        return self._inner.stats

    @outside_of_graphs
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients, on the device as torch does, and drops those that wait on the CPU."""
        super().zero_grad(set_to_none=set_to_none)
        for twin in self._twins.values():
            twin.drop()

    @torch.no_grad()
    def read_weights(self) -> None:
        """The next step takes all weights from the device, instead of those that it knows to have been changed."""
        for twin in self._twins.values():
            twin.forget_weight()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; keys that it lacks are taken from the defaults. Raises before anything is added."""
        inner: Optimizer | None = self.__dict__.get("_inner")
        if inner is None:  # called by the constructor, which has checked the group
            super().add_param_group(param_group)
            return
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}; pass {{'params': [...]}}")
        self._align()
        (group,) = listed([param_group])
        refuse_capturable([group])
        twins = self._twins_of([group], len(self.param_groups))
        inner.add_param_group(on_cpu(group, twins))
        super().add_param_group(group)  # should it raise, `_align` takes the inner group away again
        self._twins.update(twins)
        self._settle()

    # --- state ---

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """torch's state dictionary, by parameter on the device; tensors are on the CPU."""
        if "state" not in self.__dict__:  # a wrapper that passes attributes on
            raise AttributeError("state")
        if "_inner" in self.__dict__:
            self._inner._trust["state"] = False  # whoever has it may exchange tensors in it
        return self.__dict__["state"]  # type: ignore[no-any-return]

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def state_dict(self) -> dict[str, Any]:
        """That of ``optimizer_class``. Tensors are shared with the optimizer, the dictionaries are not."""
        trusted = self._inner._trust["state"]
        packed = super().state_dict()
        if isinstance(packed.get("state"), dict):  # a hook of the user may have made something else of it
            packed["state"] = {k: dict(v) if isinstance(v, dict) else v for k, v in packed["state"].items()}
            self._inner._trust["state"] = trusted
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of ``optimizer_class``, of another `CPUOffload` or of the torch.optim optimizer of that name.

        States stay on the CPU. Raises as ``optimizer_class`` does, before anything is changed.
        """
        self._align()
        state_dict = dict(dictionary(state_dict))
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            made = before(self, state_dict)
            state_dict = state_dict if made is None else made
        for twin in self._twins.values():
            if twin.param.grad is None and not twin.holds:
                twin.host.grad = None
        self._inner.load_state_dict(state_dict)
        params = {id(twin.host): twin.param for twin in self._twins.values()}
        loaded = vars(self._inner)["state"]
        self.state = defaultdict(dict, {params.get(id(key), key): value for key, value in loaded.items()})
        self.param_groups = [
            {**group, "params": own["params"]}
            for group, own in zip(self._inner.param_groups, self.param_groups, strict=True)
        ]
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        inner = {k: v for k, v in self._inner.__getstate__().items() if k not in ("state", "param_groups")}
        own = {"_free": self._free, "_inner_class": type(self._inner), "_inner_state": inner}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        inner_class, inner_state = own.pop("_inner_class"), own.pop("_inner_state")
        self._begin()
        super().__setstate__(own)
        twins = self._twins_of(self.param_groups)
        inner = inner_class.__new__(inner_class)
        groups = [on_cpu(group, twins) for group in self.param_groups]
        inner.__setstate__({**inner_state, "state": defaultdict(dict), "param_groups": groups})
        self._take_on(inner, twins)

    def _patch_step_function(self) -> None:
        super()._patch_step_function()
        keep_step_outside_of_graphs(type(self))

    # --- the optimizer on the CPU ---

    def _begin(self) -> None:
        self._twins: dict[int, Twin] = {}  # by the parameter's id
        self._lanes: dict[torch.device, Lane] = {}
        self._handover = Handover()
        weakref.finalize(self, _ignore, self._twins).atexit = False

    def _take_on(self, inner: Optimizer, twins: Mapping[int, Twin]) -> None:
        self._inner = inner
        self._twins.update(twins)
        if inner._options.amp_scaling:
            self._step_supports_amp_scaling = True  # GradScaler looks for it
        self._settle()

    def _twins_of(self, groups: Iterable[Mapping[str, Any]], first: int = 0) -> dict[int, Twin]:
        """Of all parameters in ``groups``; new ones where there are none that fit."""
        found: dict[int, Twin] = {}
        new: dict[int, tuple[Tensor, str]] = {}
        for param, name in named(groups, first):
            known = self._twins.get(id(param))
            if known is not None and known.fits():
                found[id(param)] = known
            else:
                new.setdefault(id(param), (param, name))
        return {**found, **dict(zip(new, twins_of(list(new.values()), self._lanes), strict=True))}

    def _align(self) -> None:
        """Brings what the optimizer on the CPU knows up to date. Raises before anything is changed."""
        groups, known = self.param_groups, self._twins
        refuse_capturable(groups)
        theirs = self._inner.param_groups
        if len(groups) != len(theirs) or not all(map(self._is_known, groups, theirs)):
            twins = self._twins_of(groups)
            for key in [key for key, twin in known.items() if twins.get(key) is not twin]:
                known.pop(key).ignore()
            known.update(twins)
            self._inner.param_groups = [on_cpu(group, twins) for group in groups]
        self._settle()

    def _is_known(self, group: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        params, hosts = group["params"], theirs["params"]
        twins = [self._twins.get(id(param)) for param in params]
        return len(params) == len(hosts) and all(
            twin is not None and twin.host is host and twin.fits() for twin, host in zip(twins, hosts, strict=True)
        )

    def _settle(self) -> None:
        """Hands over the options of the param groups, and states that somebody has exchanged."""
        self._handover.options(self.param_groups, self._inner.param_groups)
        states, theirs = self.__dict__["state"], vars(self._inner)["state"]
        hosts = set()
        for twin in self._twins.values():
            hosts.add(twin.host)
            state = states.get(twin.param)
            if state is not theirs.get(twin.host):
                self._inner._trust["state"] = False
                if state is None:
                    del theirs[twin.host]
                else:
                    theirs[twin.host] = state
            if self._free:
                twin.watch()
        for host in [key for key in theirs if isinstance(key, Tensor) and key not in hosts]:
            del theirs[host]

    # --- within a step ---

    def _gather(self) -> list[Twin]:
        """Brings gradients, and weights that were set, to the CPU. Returns what is to be updated."""
        updated, on_device = [], []
        for index, group in enumerate(self.param_groups):
            for position, param in enumerate(group["params"]):
                twin = self._twins[id(param)]
                if param.grad is not None:
                    validation.gradient(param, param.grad, parameter_name(group, index, position))
                    on_device.append(twin)
                elif not twin.holds:
                    twin.host.grad = None
                    continue
                updated.append(twin)
        for lane in self._lanes.values():
            lane.wait_for_sent()
        for twin in on_device:
            if self._free:
                twin.take()
            else:
                twin.fetch_gradient()
        for twin in updated:
            twin.fetch_weight()
        for lane in self._lanes.values():
            lane.wait_for_fetched()
        for twin in updated:
            twin.hand_over()
        return updated

    def _publish(self, updated: Iterable[Twin]) -> None:
        """What the step has made is in the dictionaries that it was given, except where there was none."""
        states, theirs = self.__dict__["state"], vars(self._inner)["state"]
        for twin in updated:
            state = theirs.get(twin.host)
            if state is not None:
                states[twin.param] = state


def _ignore(twins: dict[int, Twin]) -> None:
    for twin in twins.values():
        twin.ignore()
