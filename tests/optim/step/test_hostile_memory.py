"""Memory that is taken away, shared or exchanged between steps: an error before anything has moved, or what torch.optim does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import attach_prox, backends, optim, validation

SIZE = 6
BACKENDS = backends.usable()

pytestmark = pytest.mark.attacks


def _free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


class Wrapper(Tensor):
    """Stands for a tensor without memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(arg.inner if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))


def trained(steps: int = 2, **options: Any) -> tuple[list[nn.Parameter], optim.AdamW]:
    params = [nn.Parameter(torch.arange(1.0, SIZE + 1.0)) for _ in range(3)]
    optimizer = optim.AdamW(params, lr=0.1, **options)
    for _ in range(steps):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    for param in params:
        param.grad = torch.ones_like(param)
    return params, optimizer


def _view_of_freed(param: Tensor) -> None:
    """Gives a gradient that is a view into a storage, so that the address is not 0 when that is freed."""
    buffer = torch.ones(100 + SIZE)
    param.grad = buffer[100:]
    _free(buffer)


FREED: dict[str, tuple[Callable[[list[nn.Parameter], Any], None], str]] = {
    "weight": (lambda p, o: _free(p[1]), "parameter 1 of param group 0 of shape"),
    "gradient": (lambda p, o: _free(p[1].grad), "the gradient of parameter 1 of param group 0 of shape"),
    "view of a gradient": (lambda p, o: _view_of_freed(p[1]), "the gradient of parameter 1 of param group 0"),
    "state": (
        lambda p, o: _free(o.state[p[1]]["exp_avg_sq"]),
        "the state 'exp_avg(_sq)?' of parameter . of param group 0",
    ),
    "step": (lambda p, o: _free(o.state[p[1]]["step"]), "the state 'step' of parameter . of param group 0"),
    "l1_weights": (lambda p, o: _free(o.param_groups[0]["l1_weights"][1]), r"l1_weights\[1\] of shape"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", FREED)
@pytest.mark.parametrize("steps", [0, 2])
def test_freed_memory_is_named_before_anything_moves(what: str, steps: int, backend: str) -> None:
    if steps == 0 and what in ("state", "step"):
        return  # there are none yet
    free, message = FREED[what]
    with backends.use(backend):
        params, optimizer = trained(steps, l1=0.01, l1_weights=[torch.ones(SIZE) for _ in range(3)])
        before = [params[i].detach().clone() for i in (0, 2)]
        states = {i: copy.deepcopy(optimizer.state.get(params[i], {})) for i in (0, 2)}
        if what in ("state", "step"):  # of the user's, which may be resized; the optimizer's own may not
            for state in optimizer.state.values():
                state.update({key: value.clone() for key, value in state.items()})
            optimizer.step()
            before = [params[i].detach().clone() for i in (0, 2)]
            states = {i: copy.deepcopy(optimizer.state[params[i]]) for i in (0, 2)}
        free(params, optimizer)
        with pytest.raises(RuntimeError, match=message + r"[^$]*It was freed"):
            optimizer.step()
        assert torch.equal(params[0], before[0]) and torch.equal(params[2], before[1])
        if what not in ("state", "step"):  # which lie in one storage
            for i, state in states.items():
                assert all(torch.equal(optimizer.state[params[i]][key], state[key]) for key in state)


def test_a_weight_that_is_back_is_stepped_as_if_it_had_never_gone() -> None:
    (params, optimizer), (others, other) = trained(), trained()
    kept = params[1].detach().clone()
    _free(params[1])
    with pytest.raises(RuntimeError, match="parameter 1"):
        optimizer.step()
    params[1].untyped_storage().resize_(kept.nbytes)
    params[1].data.copy_(kept)
    optimizer.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def test_parameters_at_rest_without_memory_are_left_out_with_their_gradients() -> None:
    """As torch.optim does: what has no gradient is not looked at, though two such have the same address."""
    params, optimizer = trained()
    expected = torch.optim.AdamW([nn.Parameter(params[2].detach().clone())], lr=0.1)
    expected.load_state_dict({**expected.state_dict(), "state": {0: copy.deepcopy(dict(optimizer.state[params[2]]))}})
    for param in params[:2]:
        param.grad = None
        _free(param)
    optimizer.step()
    other = expected.param_groups[0]["params"][0]
    other.grad = torch.ones(SIZE)
    expected.step()
    torch.testing.assert_close(params[2], other)


@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_a_state_dict_with_freed_memory_is_refused(key: str) -> None:
    _, source = trained()
    _, optimizer = trained()
    given = copy.deepcopy(source.state_dict())
    _free(given["state"][1][key])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=f"the state '{key}' of parameter . in the state dict[^$]*freed"):
        optimizer.load_state_dict(given)
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][i][k], v) for i, s in before["state"].items() for k, v in s.items())
    optimizer.step()


def test_attached_shrinkage_names_freed_memory() -> None:
    """The optimizer that it is attached to leaves the freed weight alone, so the error is the shrinkage's."""

    class Still(torch.optim.SGD):
        def step(self, closure: Any = None) -> None: ...  # type: ignore[override]

    params = [nn.Parameter(torch.ones(SIZE)) for _ in range(2)]
    optimizer = Still(params, lr=0.1)
    attach_prox(optimizer, l1=1.0, metric="sgd")
    for param in params:
        param.grad = torch.ones(SIZE)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((SIZE,), 0.9))
    _free(params[1])
    with pytest.raises(RuntimeError, match=r"parameter 1 of param group 0[^$]*freed"):
        optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((SIZE,), 0.9))


def test_attached_shrinkage_names_a_freed_state() -> None:
    params = [nn.Parameter(torch.ones(SIZE)) for _ in range(2)]
    optimizer = torch.optim.Adam(params, lr=0.1)
    for param in params:
        param.grad = torch.ones(SIZE)
    optimizer.register_step_post_hook(lambda *_: _free(optimizer.state[params[1]]["exp_avg_sq"]))
    attach_prox(optimizer, l1=1.0)
    with pytest.raises(RuntimeError, match=r"what the step of parameter 1 of param group 0 is computed from[^$]*freed"):
        optimizer.step()


# --- tensors without memory ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_zero_tensor_is_a_gradient_of_zeros(steps: int, backend: str) -> None:
    with backends.use(backend):
        (params, optimizer), (others, other) = trained(steps), trained(steps)
        for own, grad in ((params, torch._efficientzerotensor((SIZE,))), (others, torch.zeros(SIZE))):
            own[1].grad = grad
        for _ in range(2):
            optimizer.step()
            other.step()
        assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
        assert optimizer.state[params[1]]["step"] == steps + 2
        params[1].grad, others[1].grad = torch.ones(SIZE), torch.ones(SIZE)
        optimizer.step()
        other.step()
        assert torch.equal(params[1], others[1])


WRAPPED: dict[str, Callable[[list[nn.Parameter], Any], Any]] = {
    "the gradient of parameter 1": lambda p, o: setattr(p[1], "grad", Wrapper(torch.ones(SIZE))),
    "the state 'exp_avg' of parameter 1": lambda p, o: o.state[p[1]].update(exp_avg=Wrapper(torch.ones(SIZE))),
    "the state 'step' of parameter 1": lambda p, o: o.state[p[1]].update(step=Wrapper(torch.ones(()))),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_a_wrapper_without_memory_is_refused(what: str) -> None:
    params, optimizer = trained()
    before = [param.detach().clone() for param in params]
    WRAPPED[what](params, optimizer)
    with pytest.raises(
        TypeError, match=f"{what} of param group 0 is a Wrapper that has no memory of its own: pass the plain"
    ):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_a_smaller_storage_is_too_small() -> None:
    tensor = torch.ones(4, 6)[:, 1:3]
    validation.check_memory(tensor, "x")
    tensor.untyped_storage().resize_(4 * (3 * 6 + 3))
    validation.check_memory(tensor, "x")
    tensor.untyped_storage().resize_(4 * (3 * 6 + 3) - 1)
    with pytest.raises(
        RuntimeError,
        match=r"x of shape \(4, 2\) has no memory any more: it reaches over 84 bytes of its storage, which has 83",
    ):
        validation.check_memory(tensor, "x")
    validation.check_memory(torch.ones(0, 3), "x")


# --- strided parameters, of which the kernels get copies ---


def _strided() -> tuple[list[nn.Parameter], optim.SGD]:
    params = [
        nn.Parameter(torch.ones(SIZE, 2)[:, 0]),
        nn.Parameter(torch.ones(SIZE, 2)[:, 0]),
        nn.Parameter(torch.ones(3)),
    ]
    optimizer = optim.SGD(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return params, optimizer


def test_strided_parameters_that_come_to_share_memory_are_refused() -> None:
    params, optimizer = _strided()
    params[1].data = params[0].data
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="parameter 0 of param group 0 and parameter 1 of param group 0 share memory"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_a_strided_parameter_that_becomes_expanded_is_refused_before_others_move() -> None:
    params, optimizer = _strided()
    params[1].data = torch.ones(1).expand(SIZE)
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="parameter 1 of param group 0 is expanded or overlaps itself"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_a_strided_parameter_that_has_moved_is_stepped_where_it_is() -> None:
    params, optimizer = _strided()
    old = params[0].data
    params[0].data = torch.full((SIZE, 2), 3.0)[:, 1]
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((SIZE,), 2.9))
    torch.testing.assert_close(old, torch.full((SIZE,), 0.9))
