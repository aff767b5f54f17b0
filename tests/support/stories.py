"""What training loops and frameworks do to an optimizer between steps.

Each story is a generator: it builds an optimizer, changes things behind its back, and yields it after every step. The
parameters are float64, so that `tests.support.engine` can compare with torch.optim to 1e-12.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from tests.support.engine import Build
from tests.support.telling import SHAPES, Story, give, moments, parameters, steps, trained


def new_gradients(build: Build) -> Story:
    yield from steps(build(parameters()), 4)


def gradients_written_in_place(build: Build) -> Story:
    params, optimizer = trained(build)
    for _ in range(3):
        for param in params:
            param.grad.normal_()
        optimizer.step()
        yield optimizer


def late_first_gradients(build: Build) -> Story:
    params = parameters(*SHAPES, (0,), (9,))
    optimizer = build(params)
    for count in (0, 0, 1, 1, 3, 5, 6, 6):
        give(params[:count])
        optimizer.step()
        yield optimizer


def gradients_that_come_and_go(build: Build) -> Story:
    params = [*parameters(*SHAPES), nn.Parameter(torch.randn(66, dtype=torch.float64)[::2])]
    optimizer = build(params)
    for missing in ((), (1,), (0, 1, 4), (), (2, 3, 4), (0, 1, 2, 3, 4), (), (3,)):
        give(params)
        for index in missing:
            params[index].grad = None
        optimizer.step()
        yield optimizer


def gradients_of_other_strides(build: Build) -> Story:
    params, optimizer = trained(build, (5, 7), (4, 6))
    for step in range(5):
        give(params)
        if step in (1, 2, 4):
            params[step % 2].grad = params[step % 2].grad.t().contiguous().t()
        if step == 3:
            params[0].grad = torch.randn((), dtype=torch.float64).expand(5, 7)
        optimizer.step()
        yield optimizer


def data_exchanged(build: Build) -> Story:
    params, optimizer = trained(build)
    params[0].data = torch.randn(5, 7, dtype=torch.float64)
    params[1].data = params[1].data.clone()
    yield from steps(optimizer)
    params[0].data = torch.randn(7, 5, dtype=torch.float64).t()
    params[1].data = torch.randn(66, dtype=torch.float64)[::2]
    yield from steps(optimizer)
    params[0].data = params[0].data.contiguous()
    params[1].data = params[1].data.contiguous()
    yield from steps(optimizer)


def data_turned_where_it_lies(build: Build) -> Story:
    """The address and the shape stay, the strides do not."""
    params, optimizer = trained(build, (6, 6))
    for _ in range(3):
        yield from steps(optimizer)
        params[0].data = params[0].data.t()


def data_exchanged_while_the_gradient_stays(build: Build) -> Story:
    params, optimizer = trained(build)
    for _ in range(3):
        for param in params:
            param.data = torch.randn_like(param)
        optimizer.step()
        yield optimizer


def storage_freed_and_allocated_again(build: Build) -> Story:
    """What a sharding wrapper does to save memory between steps."""
    params, optimizer = trained(build)
    for _ in range(3):
        yield from steps(optimizer, 1)
        value, storage = params[0].detach().clone(), params[0].untyped_storage()
        size = storage.size()
        storage.resize_(0)
        params[1].data = torch.randn(33, dtype=torch.float64)  # may well be given the memory that was freed
        storage.resize_(size)
        params[0].data.copy_(value)


def tensors_swapped(build: Build) -> Story:
    """What module.to() and load_state_dict() can be told to do; torch refuses it where a third party holds the tensor."""
    params, optimizer = trained(build)
    for _ in range(2):
        yield from steps(optimizer)
        (other,) = parameters((5, 7))
        give([other])
        torch.utils.swap_tensors(params[0], other)
        optimizer.step()
        yield optimizer


def parameters_exchanged_in_a_group(build: Build) -> Story:
    params, optimizer = trained(build)
    (other,) = parameters((5, 7))
    optimizer.param_groups[0]["params"][0] = other
    yield from steps(optimizer)
    (heir,) = parameters((33,))
    optimizer.state[heir] = optimizer.state.pop(params[1], {})
    optimizer.param_groups[0]["params"][1] = heir
    yield from steps(optimizer)
    give(params)
    optimizer.param_groups[0]["params"] = params  # the first of them comes back, with the state it had
    optimizer.step()
    yield optimizer


def parameters_reordered_removed_and_moved(build: Build) -> Story:
    params = parameters()
    optimizer = build([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}])
    yield from steps(optimizer)
    first, second = (group["params"] for group in optimizer.param_groups)
    first.reverse()
    yield from steps(optimizer)
    second.append(first.pop())
    yield from steps(optimizer)
    removed = second.pop()
    yield from steps(optimizer)
    second.insert(0, removed)
    yield from steps(optimizer)
    del optimizer.param_groups[0]
    yield from steps(optimizer)


def group_added(build: Build) -> Story:
    _, optimizer = trained(build)
    optimizer.add_param_group({"params": parameters((9,), (5, 7)), "lr": 0.5, "weight_decay": 0.0})
    yield from steps(optimizer)
    optimizer.add_param_group({"params": parameters((3, 3))[0]})
    yield from steps(optimizer)


def states_exchanged(build: Build) -> Story:
    params, optimizer = trained(build)
    for param in params:
        for name in moments(optimizer.state[param]):
            optimizer.state[param][name] = torch.rand_like(param)
    yield from steps(optimizer)
    kept = optimizer.state[params[0]]  # whoever holds this dictionary may change it at any time
    for _ in range(2):
        yield from steps(optimizer, 1)
        for name in moments(kept):
            kept[name] = torch.rand(7, 5, dtype=torch.float64).t()
    for name in moments(kept):
        kept[name] = torch.rand(5, 14, dtype=torch.float64)[:, ::2]
    yield from steps(optimizer)
    for name in moments(kept):
        kept[name].mul_(0.5)
    yield from steps(optimizer)
    optimizer.state[params[0]] = {name: value.clone() for name, value in kept.items()}
    yield from steps(optimizer)


def states_swapped_between_parameters(build: Build) -> Story:
    (one, other), optimizer = trained(build, (5, 7), (5, 7))
    give([one])
    other.grad = None
    optimizer.step()
    optimizer.state[one], optimizer.state[other] = optimizer.state[other], optimizer.state[one]
    yield from steps(optimizer)


def step_count_edited(build: Build) -> Story:
    params, optimizer = trained(build)
    if "step" not in optimizer.state[params[0]]:
        return
    optimizer.state[params[0]]["step"].fill_(100.0)
    yield from steps(optimizer)
    optimizer.state[params[1]]["step"] = torch.tensor(7.0)
    yield from steps(optimizer)
    for value in (0.0, 30.0):
        for param in params:
            param.grad.normal_()
        optimizer.state[params[2]]["step"].fill_(value)
        optimizer.step()
        yield optimizer


def step_count_edited_by_who_kept_it(build: Build) -> Story:
    """torch counts in the tensor that it once handed out."""
    params, optimizer = trained(build)
    kept = [optimizer.state[param].get("step", torch.zeros(())) for param in params]
    for index in range(3):
        kept[index].fill_(40.0)
        yield from steps(optimizer)


def step_count_edited_in_a_state_dict(build: Build) -> Story:
    """Its tensors are the optimizer's own; the gradients stay where they are."""
    _, optimizer = trained(build)
    for _ in range(2):
        for entry in optimizer.state_dict()["state"].values():
            for name, value in entry.items():
                value.fill_(50.0 if name == "step" else 0.25)
        optimizer.step()
        yield optimizer


def states_deleted(build: Build) -> Story:
    params, optimizer = trained(build)
    optimizer.state.pop(params[0], None)
    yield from steps(optimizer)
    optimizer.state.clear()
    yield from steps(optimizer)
    if any("step" in optimizer.state[param] for param in params):  # RMSprop's buffer belongs to the rest
        return
    for param in params:
        if "momentum_buffer" in optimizer.state[param]:
            optimizer.state[param]["momentum_buffer"] = None
    yield from steps(optimizer)
    if "momentum_buffer" in optimizer.state[params[1]]:
        del optimizer.state[params[1]]["momentum_buffer"]
    yield from steps(optimizer)


def state_dict_loaded(build: Build) -> Story:
    params, optimizer = trained(build)
    other = build(params)
    other.load_state_dict(optimizer.state_dict())
    yield from steps(other)
    optimizer.load_state_dict(other.state_dict())
    yield from steps(optimizer)


def groups_of_every_kind(build: Build) -> Story:
    """Several rules, signs and step counts in one step; keys that a rule does not know are carried along."""
    momentum = {"momentum": 0.9, "dampening": 0.0, "nesterov": False}
    options = [
        {},
        {**momentum, "amsgrad": True},
        {**momentum, "nesterov": True, "amsgrad": False, "centered": True},
        {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": True, "eps": 1e-3, "lr_decay": 0.5},
        {**momentum, "dampening": 0.7, "lr": 0.2, "betas": (0.5, 0.6)},
        {"weight_decay": 0.0},
    ]
    optimizer = build([{"params": parameters(), **own} for own in options])
    yield from steps(optimizer)
    optimizer.param_groups[1]["params"][0].grad = None
    optimizer.step()
    yield optimizer
    yield from steps(optimizer)


def schedules(build: Build) -> Story:
    optimizer = build(parameters())
    group = optimizer.param_groups[0]
    for step in range(6):
        group["lr"], group["weight_decay"] = 0.1 / (1 + step), 0.05 * step
        if step == 2:
            group["lr"] = torch.tensor(0.07, dtype=torch.float64)
        if "betas" in group:
            group["betas"] = (0.9 - 0.1 * step, 0.9)
        elif step in (1, 4):
            group.update(momentum=0.9 if step == 1 else 0.0, nesterov=False)
        yield from steps(optimizer, 1)


STORIES = [value for value in vars().copy().values() if inspect.isgeneratorfunction(value) and value is not steps]
