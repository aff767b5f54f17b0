"""States that somebody else has placed are used where they lie: by whoever holds them, and by other processes."""

from __future__ import annotations

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from regkernels import optim
from tests.support.training import each_optimizer, network, ours, theirs, train, twins

pytestmark = pytest.mark.usefixtures("one_thread")


def place(optimizer: torch.optim.Optimizer, param: Tensor, *, shared: bool = False) -> dict[str, Tensor]:
    """Adam's states of one parameter, as asynchronous training sets them before the first step."""
    state = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
    if shared:
        for value in state.values():
            value.share_memory_()
    optimizer.state[param].update(state)
    return state


def pull(optimizer: torch.optim.Optimizer, param: Tensor, steps: int) -> None:
    for _ in range(steps):
        param.grad = 2 * param.detach()
        optimizer.step()


def in_a_process(*arguments: Any) -> None:
    """With a copy of this process's memory, but for what is shared."""
    process = torch.multiprocessing.get_context("fork").Process(target=pull, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_other_processes_see_the_states_and_this_one_sees_their_steps() -> None:
    """Workers of 3 and 2 steps, and 1 here: as 6 of torch's in sequence."""
    param, other = (nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).share_memory_()) for _ in range(2))
    optimizer, reference = optim.Adam([param], lr=0.1), torch.optim.Adam([other], lr=0.1)
    state = place(optimizer, param, shared=True)
    in_a_process(optimizer, param, 3)
    assert state["step"] == 3
    in_a_process(optimizer, param, 2)
    pull(reference, other, 5)
    assert state["step"] == 5
    torch.testing.assert_close(param, other)
    pull(optimizer, param, 1)
    in_a_process(optimizer, param, 1)
    pull(optimizer, param, 1)
    pull(reference, other, 3)
    torch.testing.assert_close(param, other)
    for name, value in state.items():
        assert optimizer.state[param][name] is value and value.is_shared()
        torch.testing.assert_close(value, reference.state[other][name])


@pytest.mark.parametrize("stepped", [0, 2])
def test_an_optimizer_that_another_process_is_sent_shares_its_states(stepped: int) -> None:
    """Sent as `torch.multiprocessing` sends it to a process that is spawned, and unpacked here."""
    param = nn.Parameter(torch.tensor([1.0, -2.0]).share_memory_())
    optimizer = optim.Adam([param], lr=0.1)
    if stepped:
        pull(optimizer, param, stepped)
        for value in optimizer.state[param].values():
            value.share_memory_()
    else:
        place(optimizer, param, shared=True)
    pull(optimizer, param, 1)
    there_optimizer, (there,) = pickle.loads(bytes(ForkingPickler.dumps((optimizer, [param]))))
    pull(there_optimizer, there, 3)
    assert optimizer.state[param]["step"] == stepped + 4
    pull(optimizer, param, 1)
    other = nn.Parameter(torch.tensor([1.0, -2.0]))
    pull(torch.optim.Adam([other], lr=0.1), other, stepped + 5)
    torch.testing.assert_close(param, other)


def test_states_that_are_moved_to_shared_memory_after_the_first_step() -> None:
    model, other = twins(network())
    optimizer = ours("adam", model.parameters())
    train(optimizer, model, range(3))
    held = [value.share_memory_() for state in optimizer.state.values() for value in state.values()]
    train(optimizer, model, range(3, 6))
    reference = theirs("adam", other.parameters())
    train(reference, other, range(6))
    expected = [value for state in reference.state.values() for value in state.values()]
    for value, right in zip(held, expected, strict=True):
        torch.testing.assert_close(value, right)


@each_optimizer
def test_whoever_holds_states_from_before_the_first_step_goes_on_seeing_them(name: str) -> None:
    """And those of later ones, while the plan is made anew: parameters come and go."""
    model, other = twins(network())
    reference = theirs(name, other.parameters())
    train(reference, other, range(1))
    held = [{key: value.clone() for key, value in reference.state[param].items()} for param in other.parameters()]
    optimizer = ours(name, model.parameters())
    for param, twin, state in zip(model.parameters(), other.parameters(), held, strict=True):
        optimizer.state[param].update(state)
        param.data.copy_(twin.data)
    for step in range(1, 5):
        model[0].requires_grad_(step % 2 == 1)
        other[0].requires_grad_(step % 2 == 1)
        train(optimizer, model, [step])
        train(reference, other, [step])
    for param, twin, state in zip(model.parameters(), other.parameters(), held, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-12)
        for key, value in state.items():
            assert optimizer.state[param][key] is value
            torch.testing.assert_close(value, reference.state[twin][key], rtol=1e-12, atol=1e-12)


UNUSABLE = {
    "another dtype": lambda t: t.to(torch.bfloat16).float().half(),
    "strides": lambda t: t.new_zeros(t.shape[::-1]).t().copy_(t),
    "slices": lambda t: torch.stack([t, t], -1)[..., 0],
    "a negated view": lambda t: torch.view_as_complex(torch.stack([t, -t], -1)).conj().imag,
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_states_that_kernels_cannot_use_as_they_are_are_copied(case: str) -> None:
    param, other = (nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    optimizers = optim.SGD([param], lr=0.5, momentum=0.5), torch.optim.SGD([other], lr=0.5, momentum=0.5)
    start = torch.tensor([[1.0, -2.0, 4.0], [0.5, 8.0, -1.0]])
    for optimizer, p in zip(optimizers, (param, other), strict=True):
        optimizer.state[p]["momentum_buffer"] = start.clone()
    optimizers[0].state[param]["momentum_buffer"] = UNUSABLE[case](start)
    assert torch.equal(UNUSABLE[case](start).float(), start)
    for optimizer, p in zip(optimizers, (param, other), strict=True):
        for _ in range(3):
            p.grad = torch.ones(2, 3)
            optimizer.step()
    assert torch.equal(param, other)


def test_states_that_share_memory_get_memory_of_their_own() -> None:
    """One tensor for two parameters, one for two states, a parameter's own memory: each is updated once, from what it was."""
    a, b, c = (nn.Parameter(torch.ones(4)) for _ in range(3))
    moment = torch.full((4,), 0.5)
    step = torch.tensor(3.0)
    optimizer = optim.Adam([a, b, c], lr=0.1)
    for param in (a, b):
        optimizer.state[param].update(step=step, exp_avg=moment, exp_avg_sq=torch.ones(4))
    optimizer.state[c].update(step=step, exp_avg=moment, exp_avg_sq=c.data)
    twins = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    reference = torch.optim.Adam(twins, lr=0.1)
    for param in twins:
        reference.state[param].update(step=torch.tensor(3.0), exp_avg=torch.full((4,), 0.5), exp_avg_sq=torch.ones(4))
    for some, steps in (([a, b, c], optimizer), (twins, reference)):
        for _ in range(2):
            for scale, param in enumerate(some, 1):
                param.grad = torch.full((4,), float(scale))
            steps.step()
    for param, twin in zip((a, b, c), twins, strict=True):
        torch.testing.assert_close(param, twin)
        assert optimizer.state[param]["step"] == 5


@each_optimizer
def test_a_single_state_takes_no_more_than_itself(name: str) -> None:
    """Copied or saved alone: a view into a buffer of all would take that along."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)))
    optimizer = ours(name, model.parameters())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    for loaded in (False, True):
        if loaded:
            optimizer.load_state_dict(optimizer.state_dict())
        for state in optimizer.state.values():
            for value in state.values():
                assert value.untyped_storage().nbytes() == value.nbytes
                file = io.BytesIO()
                torch.save(value, file)
                assert file.tell() < value.nbytes + 2048


def test_memory_of_a_parameter_that_has_left_is_given_back() -> None:
    params = [nn.Parameter(torch.zeros(size)) for size in (10, 5_000_000, 10, 10)]
    optimizer = optim.Adam(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    before = resident()
    del optimizer.state[params[1]]
    del optimizer.param_groups[0]["params"][1]
    optimizer.step()
    assert before - resident() > 35e6  # of 40


def resident() -> int:
    """Bytes of memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
