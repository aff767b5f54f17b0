"""What PyTorch itself puts around an optimizer: clipping, accumulation, checkpointing, tied and averaged weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.utils import checkpoint

import regkernels
from regkernels import optim
from tests.integrations.problem import REGULARISED, data, loader, loss_of, plain_loop, zeros
from tests.support.training import assert_equal, assert_near, each_optimizer, network, ours, theirs, twins


@each_optimizer
def test_clip_grad_norm(name: str) -> None:
    """torch's function before the step, with torch's optimizer and ours, and the same within our step."""
    model, other = twins(network())
    _, third = twins(model)
    batches = list(loader(torch.float64))
    plain_loop(model, ours(name, model.parameters()), batches, clip=0.1)
    plain_loop(other, theirs(name, other.parameters()), batches, clip=0.1)
    plain_loop(third, ours(name, third.parameters(), max_grad_norm=0.1), batches)
    assert_near(model, other)
    assert_near(third, other, 1e-5)  # torch adds 1e-6 to the norm it divides by


@each_optimizer
def test_clip_grad_value_and_per_parameter(name: str) -> None:
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        optimizer = make(name, net.parameters())
        for batch in loader(torch.float64):
            loss_of(net, batch).backward()
            nn.utils.clip_grad_value_(net.parameters(), 0.05)
            for param in net.parameters():
                nn.utils.clip_grad_norm_(param, 0.02)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert_near(model, other)


@each_optimizer
def test_accumulated_gradients_are_those_of_the_large_batch(name: str) -> None:
    model, other = twins(network())
    a, b = ours(name, model.parameters(), **REGULARISED), ours(name, other.parameters(), **REGULARISED)
    plain_loop(model, a, loader(torch.float64), accumulate=4)
    x, y = data(torch.float64).tensors
    plain_loop(other, b, zip(x.split(16), y.split(16), strict=True))
    assert_near(model, other)
    assert zeros(model) > 0


class Checkpointed(nn.Module):
    """Forgets what lies between the layers and computes it again in backward."""

    def __init__(self, layers: nn.Sequential, use_reentrant: bool) -> None:
        super().__init__()
        self.layers, self.use_reentrant = layers, use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint.checkpoint(self.layers[:2], x.requires_grad_(), use_reentrant=self.use_reentrant)
        return self.layers[2](hidden)


@pytest.mark.parametrize("use_reentrant", [False, True])
@each_optimizer
def test_activation_checkpointing_changes_nothing(name: str, use_reentrant: bool) -> None:
    model, other = twins(network(torch.float32))
    a, b = ours(name, model.parameters(), **REGULARISED), ours(name, other.parameters(), **REGULARISED)
    plain_loop(model, a, loader())
    plain_loop(Checkpointed(other, use_reentrant), b, loader())
    assert_equal(model, other)


def test_a_step_between_forward_and_recomputation_is_noticed() -> None:
    """Recomputing with other weights would give gradients of no function; autograd must see that weights changed."""
    model = network(torch.float32)
    optimizer = ours("adamw", model.parameters())
    plain_loop(model, optimizer, loader())
    x, y = data().tensors
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder's weight, and one more layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 5), nn.Linear(5, 5)
        self.decoder.weight = self.encoder.weight
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.decoder(torch.tanh(self.encoder(x))))


@each_optimizer
def test_tied_weights_are_updated_and_penalised_once(name: str) -> None:
    model, other = twins(Tied().double())
    assert model.encoder.weight is model.decoder.weight and other.encoder.weight is other.decoder.weight
    plain_loop(model, ours(name, model.parameters()), loader(torch.float64))
    plain_loop(other, theirs(name, other.parameters()), loader(torch.float64))
    assert_near(model, other)

    groups = regkernels.param_groups(model, l1=0.5)
    assert [len(group["params"]) for group in groups] == [2, 3]
    before = model.encoder.weight.detach().clone()
    optimizer = optim.SGD(groups, lr=0.1)
    (0.0 * loss_of(model, data(torch.float64).tensors)).backward()
    optimizer.step()
    shrunk = before.sign() * (before.abs() - 0.1 * 0.5).clamp(min=0)
    torch.testing.assert_close(model.encoder.weight.detach(), shrunk, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("foreach", [False, True])
@each_optimizer
def test_exponential_moving_average(name: str, foreach: bool) -> None:
    """Against the recursion in float64, of weights that become zero."""
    model = network()
    function: dict[str, Any] = (
        {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.75)}
        if foreach
        else {"avg_fn": swa_utils.get_ema_avg_fn(0.75)}
    )
    average = swa_utils.AveragedModel(model, **function)
    optimizer = ours(name, regkernels.param_groups(model, l1=0.2), weight_decay=0.0)
    expected: list[Tensor] = []

    def update() -> None:
        average.update_parameters(model)
        now = [param.detach().clone() for param in model.parameters()]
        expected[:] = [0.75 * e + 0.25 * n for e, n in zip(expected, now, strict=True)] if expected else now

    plain_loop(model, optimizer, loader(torch.float64), after=update)
    for mean, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean.detach(), value, rtol=1e-13, atol=1e-15)
    assert zeros(model) > zeros(average), "docs/frameworks.md: an average reaches zero long after the weight"


def test_averaged_weights_may_be_trained_on() -> None:
    """As after swapping the average in for evaluation, or for the last epochs."""
    model, other = twins(network())
    for make, net in ((ours, model), (theirs, other)):
        average = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = make("adamw", net.parameters())
        plain_loop(net, optimizer, loader(torch.float64), after=lambda a=average, n=net: a.update_parameters(n))
        net.load_state_dict(average.module.state_dict())
        plain_loop(net, optimizer, loader(torch.float64))
    assert_near(model, other)
