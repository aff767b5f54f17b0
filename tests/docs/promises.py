"""What the text around a block of a page promises of it, where the block itself asserts nothing.

Each function is called after a block, by page and the block's number, with the names that there are then.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor, nn

import regkernels as rk

Promise = Callable[[Namespace], bool]

PROMISES: dict[tuple[str, int], Promise] = {}


def _of(page: str, *blocks: int) -> Callable[[Promise], Promise]:
    def enter(promise: Promise) -> Promise:
        PROMISES.update({(page, block): promise for block in blocks})
        return promise

    return enter


def _strengths(groups: list[dict[str, object]], key: str = "l1") -> list[tuple[int, object]]:
    """Returns how many numbers each group has, and how strongly they are penalised."""
    return [(sum(param.numel() for param in group["params"]), group.get(key, 0.0)) for group in groups]  # type: ignore[attr-defined]


def _weights(model: nn.Module) -> list[Tensor]:
    return [param.detach() for param in model.parameters() if param.dim() == 2]


OF_WEIGHTS, OF_BIASES = 4 * 8 + 8 * 3, 8 + 3
"""Numbers in the model that pages start with."""


@_of("index.md", 1)
def textbook_penalises_all(of: Namespace) -> bool:
    expected = of.criterion(of.model(of.x), of.y) + 1e-4 * torch.cat([p.flatten() for p in of.model.parameters()]).norm(
        1
    )
    return torch.allclose(of.loss, expected)


@_of("index.md", 2)
@_of("index.md", 4)  # which ends at full strength, where it once stayed at the 0 that it began with
@_of("attach_prox.md", 1)
def weights_alone_are_penalised(of: Namespace) -> bool:
    return _strengths(of.optimizer.param_groups) == [(OF_WEIGHTS, 1e-4), (OF_BIASES, 0.0)]


@_of("index.md", 3)
def sums_are_those_of_the_weights(of: Namespace) -> bool:
    params = [torch.cat([p.detach().flatten() for p in group["params"]]) for group in of.optimizer.param_groups]
    return (
        torch.allclose(of.stats.l1_norm.float(), torch.stack([p.norm(1) for p in params]))
        and torch.allclose(of.stats.squared_norm.float(), torch.stack([p.square().sum() for p in params]))
        and of.stats.nonzeros.tolist() == [int((p != 0).sum()) for p in params]
    )


@_of("modes.md", 2)
def two_modes(of: Namespace) -> bool:
    groups = of.optimizer.param_groups
    return [group["weight_decay_mode"] for group in groups] == ["prox", "decoupled"] and _strengths(groups) == [
        (OF_WEIGHTS, 1e-4),
        (OF_BIASES, 0.0),
    ]


@_of("penalties.md", 1)
def the_penalty_is_in_the_loss(of: Namespace) -> bool:
    with torch.no_grad():
        penalty = sum(1e-5 * p.abs().sum() + 1e-4 * p.square().sum() for p in of.model.parameters())
    return bool(of.loss.item() > 0) and abs(rk.elastic_net_penalty(of.model, 1e-5, 1e-4).item() - penalty) < 1e-8


@_of("penalties.md", 3)
def adaptive_and_by_rows(of: Namespace) -> bool:
    weights = _weights(of.model)
    adaptive = sum((w.abs() / (w.abs() + 1e-3)).sum() for w in weights)
    rows = sum(w.shape[1] ** 0.5 * w.norm(dim=1).sum() for w in weights)
    return torch.allclose(of.adaptive, 1e-4 * adaptive) and torch.allclose(of.rows, 1e-4 * rows)


@_of("penalties.md", 6)
def the_step_has_shrunk(of: Namespace) -> bool:
    return all(torch.isfinite(p).all() and p.grad is not None for p in of.model.parameters())


@_of("penalty_family.md", 1)
def mcp_of_weights(of: Namespace) -> bool:
    counts = of.optimizer.stats.nonzeros.tolist()
    return _strengths(of.optimizer.param_groups, "mcp") == [(OF_WEIGHTS, 1e-3), (OF_BIASES, 0.0)] and (
        counts[0] == sum(int((w != 0).sum()) for w in _weights(of.model))
    )


@_of("penalty_family.md", 3)
def scad_of_weights(of: Namespace) -> bool:
    return _strengths(of.optimizer.param_groups, "scad") == [(OF_WEIGHTS, 1e-4), (OF_BIASES, 0.0)]


@_of("penalty_family.md", 5)
def the_strength_has_been_raised(of: Namespace) -> bool:
    return _strengths(of.optimizer.param_groups, "mcp") == [(OF_WEIGHTS, 1e-3), (OF_BIASES, 0.0)]


@_of("penalty_family.md", 8)
def decay_is_cautious(of: Namespace) -> bool:
    return [group["weight_decay_mode"] for group in of.optimizer.param_groups] == ["cautious"] * 2


@_of("penalty_family.md", 10)
def heads_are_counted(of: Namespace) -> bool:
    return of.optimizer.stats.zero_groups.tolist() == [0, 0, 0]


@_of("param_groups.md", 1, 2)
def groups_of_one_model(of: Namespace) -> bool:
    return _strengths(of.groups) == [(OF_WEIGHTS, 1e-4), (OF_BIASES, 0.0)]


@_of("param_groups.md", 3)
def groups_of_two_layers(of: Namespace) -> bool:
    rates = [group["lr"] for group in of.optimizer.param_groups]
    return rates == [1e-4, 1e-4, 1e-3, 1e-3] and _strengths(of.optimizer.param_groups) == [
        (32, 1e-4),
        (8, 0.0),
        (24, 1e-3),
        (3, 0.0),
    ]


@_of("param_groups.md", 4)
def one_buffer(of: Namespace) -> bool:
    (weights,), (gradients,) = of.flat.weights, of.flat.gradients
    return weights.numel() >= OF_WEIGHTS + OF_BIASES and not gradients.any() and weights.any()


@_of("low_precision.md", 6)
def states_are_narrow(of: Namespace) -> bool:
    of.criterion(of.model(of.x), of.y).backward()
    of.optimizer.step()
    return all(
        state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16 for state in of.optimizer.state.values()
    )


@_of("clipping_and_amp.md", 1)
def the_norm_is_that_before_clipping(of: Namespace) -> bool:
    norms = torch.stack([param.grad.norm() for param in of.model.parameters()])
    return torch.allclose(of.optimizer.stats.grad_norm.float(), norms.norm())


@_of("clipping_and_amp.md", 3)
@_of("clipping_and_amp.md", 4)
@_of("clipping_and_amp.md", 5)
def three_steps_in_half_precision(of: Namespace) -> bool:
    steps = {int(state["step"]) for state in of.optimizer.state.values()}
    return steps in ({3}, {6}) and all(param.isfinite().all() for param in of.model.parameters())


@_of("example_digits.md", 1)
def rows_of_two_layers(of: Namespace) -> bool:
    return _strengths(of.optimizer.param_groups, "group_l1") == [(64 * 512 + 512 * 256, 5e-4), (2560 + 778, 0.0)]


@_of("example_digits.md", 2)
def nothing_has_died_yet(of: Namespace) -> bool:
    return torch.allclose(of.result.model(of.images), of.model(of.images))


@_of("compile.md", 1)
def the_compiled_loss_is_the_sum(of: Namespace) -> bool:
    plain = of.criterion(of.model(of.x), of.y) + rk.elastic_net_penalty(of.model, l1=1e-5, l2=1e-4)
    return torch.allclose(of.loss_of(of.x, of.y), plain)


@_of("compile.md", 2)
def the_strength_is_no_constant(of: Namespace) -> bool:
    of_none, of_some = (of.scheduled_loss(of.x, of.y, torch.tensor(strength)) for strength in (0.0, 1.0))
    return torch.allclose(of_some - of_none, rk.l1_penalty(of.model, 1.0))


@_of("compile.md", 3, 4)
def steps_beside_compiled_code(of: Namespace) -> bool:
    steps = {int(state["step"]) for state in of.optimizer.state.values()}
    return steps in ({3}, {6})


@_of("offload.md", 1)
def the_optimizer_is_elsewhere(of: Namespace) -> bool:
    return of.optimizer.stats.nonzeros.tolist()[0] <= OF_WEIGHTS and all(p.grad is None for p in of.model.parameters())


@_of("offload.md", 2)
def states_go_both_ways(of: Namespace) -> bool:
    ours, plain = of.optimizer.state_dict()["state"], of.plain.state_dict()["state"]
    return ours.keys() == plain.keys() and all(torch.equal(ours[k]["exp_avg"], plain[k]["exp_avg"]) for k in ours)


@_of("attach_prox.md", 2)
def another_optimizer_is_penalised(of: Namespace) -> bool:
    with torch.no_grad():
        for param in of.model.parameters():
            param.fill_(1e-7)
    of.criterion(of.model(of.x), of.y).backward()
    for param in of.model.parameters():
        param.grad.zero_()
    of.optimizer.step()  # a threshold of about 1e-2 * 1e-4 with no gradient
    return not any(param.any() for param in of.model.parameters())


@_of("internals.md", 2)
def it_says_what_is_in_use(of: Namespace) -> bool:
    return {"backend", "torch"} <= rk.info().keys()


@_of("migration.md", 1)
def half_the_mean_squared_error(of: Namespace) -> bool:
    return _strengths(of.optimizer.param_groups) == [(OF_WEIGHTS + OF_BIASES, 0.2)]


@_of("compact.md", 2)
def the_report_counts_rows_and_columns(of: Namespace) -> bool:
    rows = {row.name: (row.zero_rows, row.zero_columns) for row in of.report.rows}
    return rows["0.weight"][0] == 3 and rows["4.weight"][0] == 12 and rows["6.weight"][1] == 1


@_of("selection.md", 5)
def stronger_means_sparser(of: Namespace) -> bool:
    counts = of.path.nonzeros.tolist()
    return counts == sorted(counts, reverse=True) and counts[0] == 88 and len(of.path.scores) == 4


@_of("selection.md", 6)
def it_begins_with_nothing(of: Namespace) -> bool:
    return of.path.nonzeros[0] == 0 and len(of.path) == 10


@_of("cross_validation.md", 3)
def eight_models_are_trained(of: Namespace) -> bool:
    return of.outputs.shape == (8, len(of.x), 3) and of.losses.shape == (8,)


@_of("cross_validation.md", 4)
def a_score_of_each_fold(of: Namespace) -> bool:
    return of.scores.shape == (3, 4) and bool(of.scores.isfinite().all())
