"""Threads that step one optimizer, and processes that fork."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from regkernels import optim
from tests.support.children import in_child

pytestmark = pytest.mark.attacks


def _many(value: float = 1.0) -> tuple[list[nn.Parameter], optim.SGD]:
    """So many small tensors, which torch steps without a second thread, that the kernels take several."""
    params = [nn.Parameter(torch.ones(50)) for _ in range(1000)]
    for param in params:
        param.grad = torch.full((50,), value)
    return params, optim.SGD(params, lr=0.25)


def _train(value: float) -> float:
    params, optimizer = _many(value)
    optimizer.step()
    assert all(torch.equal(param, params[0]) for param in params)
    return float(params[-1][0])


def test_threads_that_step_one_optimizer_take_turns() -> None:
    """Each step is a whole one: so many times lr has been subtracted, and so many steps are counted, whoever made them."""

    def train_in_threads() -> None:
        params = [nn.Parameter(torch.zeros(5000)) for _ in range(20)]
        optimizer = optim.AdamW(params, lr=0.125, weight_decay=0.0, stats=True)
        for param in params:
            param.grad = torch.ones(5000)
        failed: list[BaseException] = []

        def train() -> None:
            try:
                for step in range(30):
                    if step == 10:  # the plan is made anew
                        optimizer._forget()
                    optimizer.step()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=train) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        assert all(optimizer.state[param]["step"] == 120 for param in params)
        assert all((param + 15.0).abs().max() < 1e-3 for param in params), params[0]

    in_child(train_in_threads)


def test_copies_and_pickles_of_an_optimizer_step_on_their_own() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([param], lr=0.25)
    param.grad = torch.ones(3)
    with optimizer._stepper._lock:  # as in a step, in another thread than that of the copies
        copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]

        def step() -> None:
            for other in copies:
                (own,) = other.param_groups[0]["params"]
                own.grad = torch.ones(3)
                other.step()

        thread = threading.Thread(target=step)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
    for other in copies:
        assert torch.equal(other.param_groups[0]["params"][0], torch.full((3,), 0.75))
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.75))


def test_a_gradient_is_freed_when_the_step_is_over() -> None:
    """It is held during the step only, whether it was looked at in C++ or in Python."""
    param, strided = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2)[:, 0])
    optimizer = optim.SGD([param, strided], lr=0.25)
    for _ in range(3):
        for own in (param, strided):
            own.grad = torch.ones(3)
        memory = [StorageWeakRef(own.grad.untyped_storage()) for own in (param, strided)]  # type: ignore[union-attr]
        optimizer.step()
        assert not any(of.expired() for of in memory)
        optimizer.zero_grad()
        assert all(of.expired() for of in memory)


# --- processes that fork ---


@pytest.fixture
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.mark.usefixtures("_two_threads")
def test_a_child_of_a_parent_that_has_trained_trains_on() -> None:
    """It has none of its parent's threads. Without a word to the runtime, it would wait for them for ever."""
    params, optimizer = _many()
    optimizer.step()
    large = torch.ones(1 << 20)
    assert (large + large).sum() == 1 << 21

    def go_on() -> None:
        optimizer.step()
        assert all(torch.equal(param, torch.full((50,), 0.5)) for param in params)
        assert (large + large).sum() == 1 << 21  # torch's own threads, too
        assert torch.get_num_threads() == 2

    in_child(go_on)
    assert torch.get_num_threads() == 2
    optimizer.step()
    assert all(torch.equal(param, torch.full((50,), 0.5)) for param in params)
    in_child(lambda: in_child(go_on_from_half(params, optimizer)))


def go_on_from_half(params: list[nn.Parameter], optimizer: optim.SGD):  # type: ignore[no-untyped-def]
    def go_on() -> None:
        optimizer.step()
        assert all(torch.equal(param, torch.full((50,), 0.25)) for param in params)

    return go_on


class Data(torch.utils.data.Dataset[float]):
    """Trains where it is read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return _train(float(index))


@pytest.mark.usefixtures("_two_threads")
def test_workers_that_were_forked_train() -> None:
    def work() -> None:
        assert _train(0.0) == 1.0
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(_train, [0.0, 1.0, 2.0]).get(timeout=50) == [1.0, 0.75, 0.5]
        loader = torch.utils.data.DataLoader(Data(), num_workers=2, timeout=50, multiprocessing_context="fork")
        assert [float(x) for x in loader] == [1.0, 0.75, 0.5, 0.25]

    in_child(work)


def test_a_child_steps_an_optimizer_that_another_thread_was_stepping() -> None:
    """The thread that had the turn is not there to end it."""
    param = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([param], lr=0.25)
    param.grad = torch.ones(3)
    begun, ends = threading.Event(), threading.Event()

    def step_long() -> None:
        with optimizer._stepper._lock:
            begun.set()
            ends.wait()

    def step() -> None:
        optimizer.step()
        assert torch.equal(param, torch.full((3,), 0.75))

    thread = threading.Thread(target=step_long)
    thread.start()
    begun.wait()
    try:
        in_child(step, seconds=20)
    finally:
        ends.set()
        thread.join()
