"""Groups added, and parameters, memory and states exchanged by the user during training."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from torch import nn

from tests.support.training import assert_near, each_optimizer, network, ours, theirs, train, twins

pytestmark = pytest.mark.usefixtures("one_thread")


@each_optimizer
def test_groups_added_during_training(name: str) -> None:
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net[0].parameters())
        train(optimizer, net, range(2))
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.001})
        train(optimizer, net, range(2, 5))
    assert_near(model, other)


@each_optimizer
def test_parameters_exchanged_in_the_groups(name: str) -> None:
    """FSDP2 does so after construction, Accelerate after training has begun: new objects start anew, old ones rest."""
    model, other = twins(network())
    optimizers = []
    for make, net in ((ours, model), (theirs, other)):
        fresh = copy.deepcopy(net)
        optimizer = make(name, fresh.parameters())
        optimizer.param_groups[0]["params"] = list(net.parameters())
        train(optimizer, net, range(3))
        old = net[0].weight
        net[0].weight = nn.Parameter(old.detach() * 0.5)
        optimizer.param_groups[0]["params"][0] = net[0].weight
        kept = old.detach().clone()
        train(optimizer, net, range(3, 6))
        assert torch.equal(old, kept)
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
        optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:2]
        train(optimizer, net, range(6, 8))
        optimizers.append(optimizer)
    assert_near(model, other)
    assert len(optimizers[0].state) == len(optimizers[1].state)


@pytest.mark.parametrize("change", ["data", "set_", "in place", "copy of the gradient"])
@each_optimizer
def test_memory_exchanged_under_a_parameter(name: str, change: str) -> None:
    """`p.data = ...` by an adapter, an offloader or a quantiser: the step goes where the parameter is now."""
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        keep = []
        for step in range(4):
            train(optimizer, net, [step])
            weight = net[0].weight
            keep.append(weight.data)  # so that the old memory is not given out again
            with torch.no_grad():
                if change == "data":
                    weight.data = weight.data * 1.5
                elif change == "set_":
                    weight.set_(weight.data.clone() * 1.5)
                elif change == "in place":
                    weight.mul_(1.5)
                else:
                    keep.append(weight.grad)
                    weight.grad = weight.grad.clone()
                    optimizer.step()
    assert_near(model, other)


@each_optimizer
def test_states_exchanged_by_the_user(name: str) -> None:
    model, other = twins(network())
    a, b = ours(name, model.parameters()), theirs(name, other.parameters())
    for step in range(10):
        for optimizer, net in ((a, model), (b, other)):
            train(optimizer, net, [step])
            state = optimizer.state.get(net[0].weight, {})
            tensors = {key: value for key, value in state.items() if key != "step"}
            if step == 1:
                state.update({key: value.clone() * 2 for key, value in tensors.items()})
            elif step == 2:
                for value in tensors.values():
                    value.mul_(0.5)
            elif step == 3 and "step" in state:
                state["step"] = torch.tensor(1.0)
            elif step == 4 and "step" in state:
                state["step"].fill_(7.0)
            elif step == 5:
                optimizer.state.pop(net[2].weight, None)
            elif step == 6:
                optimizer.state.clear()
            elif step == 8:
                optimizer.state = defaultdict(dict)
        assert_near(model, other)


def test_a_step_count_changed_through_the_state_dict() -> None:
    """Its tensors are the optimizer's own, as in torch."""
    model, other = twins(network())
    a, b = ours("adam", model.parameters()), theirs("adam", other.parameters())
    for step in range(5):
        for optimizer, net in ((a, model), (b, other)):
            train(optimizer, net, [step])
            if step == 2:
                for state in optimizer.state_dict()["state"].values():
                    state["step"].zero_()
    assert_near(model, other)
