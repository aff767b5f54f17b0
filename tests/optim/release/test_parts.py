"""What steps a bucket is an optimizer of the user's class, with today's options: overridden steps, hooks, keys that are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from regkernels import optim


class Clipping(optim.AdamW):
    """Clips each gradient before the step that it inherits."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.clamp_(-0.1, 0.1)
        return super().step(closure)


def test_a_step_that_a_subclass_overrides() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = Clipping([param], lr=0.1)
    optim.step_in_backward(optimizer)
    (param * 5).sum().backward()
    assert torch.equal(optimizer.state[param]["exp_avg"], torch.full((3,), 0.1) * torch.tensor(1 - 0.9))


def test_hooks_of_all_optimizers_run_for_each_bucket_and_own_ones_with_the_step() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = optim.SGD(params, lr=0.1)
    optim.step_in_backward(optimizer, bucket_bytes=0)
    seen: list[str] = []

    def noting(name: str) -> Callable[..., None]:
        return lambda *arguments: seen.append(name)

    hooks: list[Any] = [
        register_optimizer_step_pre_hook(noting("before")),
        register_optimizer_step_post_hook(noting("after")),
        optimizer.register_step_pre_hook(noting("own")),
    ]
    try:
        sum(param.sum() for param in params).backward()  # type: ignore[union-attr]
        assert seen == ["before", "after"] * 2
        optimizer.step()
        assert sorted(seen[4:]) == ["after", "before", "own"]
    finally:
        for hook in hooks:
            hook.remove()


def test_an_option_that_is_taken_out_of_a_group_no_longer_holds() -> None:
    """The step is then that of an optimizer that never had it."""
    ways = []
    for key in ({"mcp": 0.5}, {}):
        params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
        optimizer = optim.SGD([{"params": params, **key}], lr=0.1)
        optim.step_in_backward(optimizer)
        for step in range(2):
            if step == 1:
                optimizer.param_groups[0].pop("mcp", None)
                with torch.no_grad():
                    for param in params:
                        param.fill_(1.0)
            sum(0.1 * param.sum() for param in params).backward()  # type: ignore[union-attr]
        ways.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*ways, strict=True))
