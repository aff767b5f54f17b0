"""Keeps an optimizer on the CPU for a model on an accelerator."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from regkernels import validation
from regkernels.distributed.agreement import Described
from regkernels.dynamo import outside_of_graphs
from regkernels.optim.adamw import AdamW
from regkernels.optim.checkpoint.check import dictionary
from regkernels.optim.contract import Contract, evaluated
from regkernels.optim.offload.mirror import Mirror
from regkernels.optim.offload.mirrors import Mirrors, publish, send
from regkernels.optim.offload.param_groups import Handover, listed, on_cpu, refuse_capturable
from regkernels.optim.optimizer import Optimizer
from regkernels.optim.stats import Stats
from regkernels.optim.step.stepper import Stepper


class CPUOffload(Contract):
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
        _check_arguments(optimizer_class, free_gradients, options)
        validation.parameters_argument(params)
        self._free = free_gradients
        self._begin()
        groups = listed(params)
        refuse_capturable({**options, **group} for group in groups)
        mirrors = self._mirrors.of(groups)
        inner = optimizer_class([on_cpu(group, mirrors) for group in groups], **{"param_rounding": "master", **options})
        super().__init__(groups, dict(inner.defaults))
        self._mirrors.add(mirrors)
        self.state = self._mirrors.states_of_params(vars(inner)["state"])
        self._take_on(inner, mirrors)

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
        loss = evaluated(closure)
        self._align()
        updated = self._mirrors.gather(self.param_groups, free=self._free)
        _pass_on_scale(self, self._inner)
        before = [mirror.host._version for mirror in updated]
        self._inner.step()
        send([mirror for mirror, version in zip(updated, before, strict=True) if mirror.host._version != version])
        if self._free:
            self._mirrors.drop_gradients(updated)
        publish(updated, self.__dict__["state"], vars(self._inner)["state"])
        return loss

    @property
    def _stepper(self) -> Stepper:  # type: ignore[override]
        return self._inner._stepper

    def _described(self) -> Described:
        return self._inner._described()._replace(name=type(self).__name__, groups=self.param_groups)

    @property
    @outside_of_graphs
    def stats(self) -> Stats | None:
        """Returns the sums of the last step, on the CPU; None before the first one. There is none without ``stats=True``."""
        return self._inner.stats

    @outside_of_graphs
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients, on the device as torch does, and drops those that wait on the CPU."""
        super().zero_grad(set_to_none=set_to_none)
        self._mirrors.drop_gradients()

    @torch.no_grad()
    def read_weights(self) -> None:
        """Lets the next step take all weights from the device, instead of those that it knows to have been changed."""
        self._mirrors.forget_weights()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group; keys that it lacks are taken from the defaults. Raises before anything is added."""
        inner: Optimizer | None = self.__dict__.get("_inner")
        if inner is None:  # called by the constructor, which has checked the group
            super().add_param_group(param_group)
            return
        validation.param_group_argument(param_group)
        self._align()
        (group,) = listed([param_group])
        refuse_capturable([group])
        mirrors = self._mirrors.of([group], len(self.param_groups))
        inner.add_param_group(on_cpu(group, mirrors))
        super().add_param_group(group)  # should it raise, `_align` takes the inner group away again
        self._mirrors.add(mirrors)
        self._settle()

    # --- state ---

    def _trust_state(self, trusted: bool) -> None:
        if "_inner" in self.__dict__:  # not yet, where torch's constructor sets the state
            super()._trust_state(trusted)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of ``optimizer_class``, of another `CPUOffload` or of the torch.optim optimizer of that name.

        States stay on the CPU. Raises as ``optimizer_class`` does, before anything is changed.
        """
        self._align()
        state_dict = dict(dictionary(state_dict))
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            made = before(self, state_dict)
            state_dict = state_dict if made is None else made
        self._mirrors.drop_used_gradients()
        self._inner.load_state_dict(state_dict)
        self.state = self._mirrors.states_of_params(vars(self._inner)["state"])
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
        mirrors = self._mirrors.of(self.param_groups)
        inner = inner_class.__new__(inner_class)
        groups = [on_cpu(group, mirrors) for group in self.param_groups]
        inner.__setstate__({**inner_state, "state": defaultdict(dict), "param_groups": groups})
        self._take_on(inner, mirrors)

    # --- the optimizer on the CPU ---

    def _begin(self) -> None:
        self._mirrors = Mirrors()
        self._handover = Handover()
        weakref.finalize(self, self._mirrors.ignore).atexit = False

    def _take_on(self, inner: Optimizer, mirrors: Mapping[int, Mirror]) -> None:
        """Begins to work with an optimizer on the CPU."""
        self._inner = inner
        self._mirrors.add(mirrors)
        self._announce_scaling()
        self._settle()

    def _align(self) -> None:
        """Brings what the optimizer on the CPU knows up to date. Raises before anything is changed."""
        groups = self.param_groups
        refuse_capturable(groups)
        if not self._mirrors.are_known(groups, self._inner.param_groups):
            mirrors = self._mirrors.of(groups)
            self._mirrors.replace(mirrors)
            self._inner.param_groups = [on_cpu(group, mirrors) for group in groups]
        self._settle()

    def _settle(self) -> None:
        """Hands over the options of the param groups, and states that somebody has exchanged."""
        self._handover.options(self.param_groups, self._inner.param_groups)
        if self._mirrors.take_states(self.__dict__["state"], vars(self._inner)["state"]):
            self._stepper.trust.holds = False
        if self._free:
            self._mirrors.watch()


def _pass_on_scale(optimizer: CPUOffload, inner: Optimizer) -> None:
    """Hands over what torch.amp.GradScaler has set, on the CPU."""
    if optimizer._stepper.options.amp_scaling:
        for name in ("grad_scale", "found_inf"):
            value = vars(optimizer).get(name)
            setattr(inner, name, value.cpu() if isinstance(value, Tensor) else value)


def _check_arguments(optimizer_class: object, free_gradients: object, options: Mapping[str, Any]) -> None:
    """Raises where arguments of `CPUOffload` are not allowed, alone or together."""
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
