"""What a step refuses: the error says which parameter and why; no weight, state or step count has changed by then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regkernels import FlatParameters, optim, validation


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def _bits(optimizer: optim.Adam) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*params, *states] if tensor.device.type == "cpu"]


def _step(*params: Tensor, **options: Any) -> Callable[[], Any]:
    """A step of an optimizer that has already taken one with other parameters, whose bits must not change."""

    def call() -> None:
        good = _parameter(5), nn.Parameter(torch.ones(4, 6)[:, ::2])
        optimizer = optim.Adam(good, **options)
        for param in good:
            param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.add_param_group({"params": list(params)})
        before = _bits(optimizer)
        try:
            optimizer.step()
        except Exception:
            after = _bits(optimizer)
            assert len(before) == len(after), "no state was created"
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(before, after, strict=True))
            raise

    return call


def _with_gradient(param: Tensor, grad: Tensor | None = None) -> Tensor:
    param.grad = torch.ones_like(param) if grad is None else grad
    return param


def _then(param: Tensor, data: Tensor) -> Tensor:
    """``param`` with a gradient, and ``data`` put under it after that."""
    _with_gradient(param).data = data
    return param


def _sharing(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> list[Tensor]:
    base = torch.ones(8, 8)
    return [_with_gradient(nn.Parameter(part(base))) for part in (first, second)]


SHARED = "(?s)parameter . of param group 1.*parameter . of param group 1.*share memory.*one Parameter object"
STEPS: dict[str, tuple[Callable[[], Callable[[], Any]], type[Exception], str]] = {
    "meta parameter": (
        lambda: _step(_with_gradient(nn.Parameter(torch.ones(2, device="meta")))),
        RuntimeError,
        "CPU, CUDA and ROCm tensors, got a tensor on device 'meta'; move the model",
    ),
    "capturable": (
        lambda: _step(_with_gradient(_parameter(2)), capturable=True),
        ValueError,
        "capturable=True needs parameters on an accelerator, but parameter 0 of param group . is on the CPU",
    ),
    "complex with l1": (
        lambda: _step(_with_gradient(nn.Parameter(torch.ones(2, dtype=torch.complex64))), l1=0.5),
        ValueError,
        "parameter 0 of param group 1 is complex and its l1 is 0.5.*group with l1=0",
    ),
    "gradient of another shape": (
        lambda: _step(_then(_parameter(2), torch.ones(3))),
        RuntimeError,
        r"gradient of parameter 0 of param group 1 has shape \(2,\), the parameter has \(3,\)",
    ),
    "gradient of another type": (
        lambda: _step(_then(_parameter(2), torch.ones(2, dtype=torch.float64))),
        RuntimeError,
        "gradient of parameter 0 of param group 1 has dtype torch.float32, the parameter has torch.float64",
    ),
    "sparse gradient": (
        lambda: _step(_with_gradient(_parameter(2, 2), torch.eye(2).to_sparse())),
        RuntimeError,
        "gradient of parameter 0 of param group 1 has layout torch.sparse_coo.*sparse=False",
    ),
    "memory twice": (lambda: _step(*_sharing(lambda b: b, lambda b: b)), ValueError, SHARED),
    "memory overlapping": (lambda: _step(*_sharing(lambda b: b[:4], lambda b: b[3:])), ValueError, SHARED),
    "memory of a column twice": (
        lambda: _step(*_sharing(lambda b: b[:, :4], lambda b: b[:, 3:])),
        ValueError,
        SHARED,
    ),
    "memory within a strided one": (
        lambda: _step(*_sharing(lambda b: b[:, ::2], lambda b: b[7])),
        ValueError,
        SHARED,
    ),
    "memory twice, gradients of another layout": (
        lambda: _step(*(_with_gradient(p, torch.ones(8, 16)[:, ::2]) for p in _sharing(lambda b: b, lambda b: b))),
        ValueError,
        SHARED,
    ),
    "memory of complex numbers twice": (
        lambda: _step(*_sharing(lambda b: torch.view_as_complex(b.view(32, 2)), lambda b: b)),
        ValueError,
        SHARED,
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps(case: str) -> None:
    make, error, text = STEPS[case]
    call = make()
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("what", ["dtype", "shape", "sparse", "wide gradient"])
def test_gradients_that_stop_to_fit_during_training(what: str, dense: bool) -> None:
    """The plan of the last step must not be used for a gradient that is something else now."""
    good = nn.Parameter(torch.ones(3))
    bad = nn.Parameter(torch.ones(4, 6) if dense else torch.ones(4, 12)[:, ::2])
    optimizer = optim.Adam([good, bad])
    for _ in range(2):
        good.grad, bad.grad = torch.ones(3), torch.ones(4, 6)
        optimizer.step()
    data = bad.data
    if what == "dtype":
        bad.data = data.double()
    elif what == "shape":
        bad.data = data[:2]
    elif what == "sparse":
        bad.grad = torch.ones(4, 6).to_sparse()
    else:
        bad.grad = None
        bad.grad_dtype = torch.float64  # torch lets a gradient be wider than its parameter
        bad.grad = torch.ones(4, 6, dtype=torch.float64)
    before = _bits(optimizer)
    with pytest.raises(RuntimeError, match=r"gradient of parameter 1 of param group 0 has (dtype|shape|layout)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, _bits(optimizer), strict=True))
    bad.data, bad.grad = data, None
    bad.grad_dtype = torch.float32
    bad.grad = torch.ones(4, 6)
    optimizer.step()
    assert [float(state["step"]) for state in optimizer.state.values()] == [3, 3]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("what", ["dtype", "shape", "layout"])
def test_parameters_and_gradients_that_change_together_are_no_error(what: str, dense: bool) -> None:
    results = []
    for make in (optim.SGD, torch.optim.SGD):
        p = nn.Parameter(torch.ones(4, 6) if dense else torch.ones(4, 12)[:, ::2])
        optimizer = make([p], lr=0.5)
        for _ in range(2):
            p.grad = torch.ones(4, 6)
            optimizer.step()
        p.grad = None
        changed = {"dtype": p.data.double(), "shape": p.data[:, 1:5], "layout": p.data.mT.contiguous().mT}
        p.data = changed[what]
        p.grad = torch.arange(p.numel(), dtype=p.dtype).view(p.shape)
        optimizer.step()
        results.append(p.detach())
    assert results[0].dtype == results[1].dtype and torch.equal(*results)


def test_gradient_of_another_device() -> None:
    """torch does not let one be assigned; wrappers of parameters may."""
    with pytest.raises(RuntimeError, match=r"gradient of p has device meta, the parameter has cpu.*must agree"):
        validation.gradient(torch.ones(2), torch.ones(2, device="meta"), "p")


@pytest.mark.parametrize("flat", [False, True])
def test_memory_side_by_side_is_not_shared(flat: bool) -> None:
    """Columns of one matrix (a fused projection that was split) lie between each other without sharing an element."""
    grid = torch.ones(8, 8)
    params = [nn.Parameter(grid[:, :3]), nn.Parameter(grid[:, 3:7]), nn.Parameter(grid[:, 7:])]
    for index, param in enumerate(params):
        param.grad = torch.full_like(param, index + 1.0)
    if flat:
        FlatParameters(params)
    optim.SGD(params, lr=1.0).step()
    row = 1 - torch.tensor([1.0, 1, 1, 2, 2, 2, 2, 3])
    assert torch.equal(torch.cat([param.detach() for param in params], dim=1), row.expand(8, 8))


def test_an_exception_in_the_closure_changes_nothing() -> None:
    p = _with_gradient(_parameter(3))
    optimizer = optim.Adam([p])

    def closure() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(3)) and not optimizer.state


IN_PLACE: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "lr": (torch.tensor(0.1), lambda lr: lr.fill_(-1.0), "lr must be >= 0, got -1.0"),
    "l1": (torch.tensor(0.1), lambda l1: l1.fill_(torch.nan), "l1 must be finite, got nan"),
    "weight_decay": (torch.tensor([0.1]), lambda decay: decay.fill_(torch.inf), "weight_decay must be finite"),
    "betas": ([0.9, 0.9], lambda betas: betas.__setitem__(1, 1.0), r"betas\[1\] must be in \[0, 1\), got 1.0"),
}


@pytest.mark.parametrize("key", IN_PLACE)
def test_options_that_turn_bad_in_place(key: str) -> None:
    """What can be changed without being exchanged has to be looked at in each step."""
    value, spoil, text = IN_PLACE[key]
    p = _with_gradient(_parameter(3))
    optimizer = optim.Adam([p], **{key: value.copy() if isinstance(value, list) else value.clone()})
    optimizer.step()
    optimizer.step()
    before = _bits(optimizer)
    spoil(optimizer.param_groups[0][key])
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, _bits(optimizer), strict=True))


@pytest.mark.parametrize(
    ("dtype", "change", "text"),
    [
        (torch.complex64, {"l1": 0.5}, "parameter 0 of param group 0 is complex and its l1 is 0.5"),
        (torch.float32, {"capturable": True}, "capturable=True needs parameters on an accelerator"),
    ],
)
def test_options_that_stop_to_fit_the_parameters_during_training(
    dtype: torch.dtype, change: dict[str, Any], text: str
) -> None:
    """They are refused in the first step, and no less in the third."""
    p = _with_gradient(nn.Parameter(torch.ones(3, dtype=dtype)))
    optimizer = optim.Adam([p])
    optimizer.step()
    optimizer.step()
    before = _bits(optimizer)
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=text):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, _bits(optimizer), strict=True))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_lazy_parameter_waits_for_its_shape(name: str) -> None:
    weight, lazy = nn.Parameter(torch.ones(3)), nn.LazyLinear(2)
    optimizer = getattr(optim, name)([weight, *lazy.parameters()], lr=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight < 1).all()
    lazy(torch.ones(1, 4)).sum().backward()
    before = lazy.weight.detach().clone()
    optimizer.step()
    assert (lazy.weight != before).all()


@pytest.mark.parametrize("rounding", ["master", "remainder", "stochastic"])
def test_sgd_keeps_nothing_for_frozen_parameters(rounding: str) -> None:
    weight, frozen = (nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=grad) for grad in (True, False))
    optimizer = optim.SGD([weight, frozen], lr=0.1, param_rounding=rounding)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight] and frozen not in optimizer.state


def test_frozen_parameters_may_share_memory() -> None:
    memory, weight = torch.ones(4), nn.Parameter(torch.ones(3))
    shared = [nn.Parameter(part, requires_grad=False) for part in (memory[:3], memory[1:])]
    weight.grad = torch.ones(3)
    optim.SGD([weight, *shared], lr=0.5).step()
    assert weight.tolist() == [0.5] * 3
