"""Networks without their zero neurons and filters: the same outputs, as small as they can be."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regkernels as rk
from tests.support.networks import NETWORKS, WEIGHTS, batch, with_zeros

pytestmark = pytest.mark.usefixtures("one_thread")


def output(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    return copy.deepcopy(model).train(training)(x.clone())


def assert_same(a: nn.Module, b: nn.Module, x: Tensor, modes: tuple[bool, ...] = (False, True)) -> None:
    for training in modes:
        torch.testing.assert_close(output(a, x, training), output(b, x, training), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay(name: str, eval_only: bool) -> None:
    removed = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model = with_zeros(NETWORKS[name][0](), seed)
        before = copy.deepcopy(model.state_dict())
        compacted = rk.compact(model, batch(name), eval_only=eval_only)
        for x in (batch(name, 1), batch(name, 2)):
            assert_same(model, compacted.model, x, (False,) if eval_only else (False, True))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert type(compacted.model) is type(model)
        assert not rk.compact(compacted.model, eval_only=eval_only).removed
        removed += compacted.parameters_before - compacted.parameters
        assert sum(p.numel() for p in compacted.model.parameters()) == compacted.parameters
    assert removed > 0


def hidden_channels(model: nn.Sequential, x: Tensor) -> list[int]:
    """How many channels each layer but the last needs: those that vary from place to place and that the output depends on.

    Or, before a padding layer, that are constants other than zero. By what comes out and by gradients, not by looking at weights.
    """
    acts: list[Tensor] = []
    for module in model:
        x = module(x)
        if isinstance(module, (nn.Tanh, nn.Sigmoid)):
            x.retain_grad()
            acts.append(x)
    (x * torch.randn_like(x)).sum().backward()
    needed = []
    pads = [bool(sum(getattr(module, "padding", ()))) for module in model if isinstance(module, WEIGHTS)][1:]
    for act, padded in zip(acts, pads, strict=True):
        flat, slope = act.detach().transpose(0, 1).flatten(1), act.grad.transpose(0, 1).flatten(1)
        constant = (flat.amax(1) - flat.amin(1) < 1e-13) & ((flat.amax(1) == 0) | (not padded))
        needed.append(max(1, int((~constant & (slope != 0).any(1)).sum())))
    return needed


def sizes(model: nn.Module) -> list[int]:
    return [module.weight.shape[0] for module in model.modules() if isinstance(module, WEIGHTS)][:-1]


@st.composite
def stacks(draw: Any) -> tuple[nn.Sequential, Tensor, int]:
    """Convolutions, then Linear layers, with activations between them, and an input."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    layers: list[nn.Module] = []
    activation = draw(st.sampled_from([nn.Tanh, nn.Sigmoid]))
    channels, size = 2, 6
    for _ in range(draw(st.integers(0, 2))):
        width, padding = draw(st.integers(4, 10)), draw(st.sampled_from([0, 1]))
        layers += [nn.Conv2d(channels, width, 3, padding=padding), activation()]
        channels, size = width, size + 2 * padding - 2
    x = torch.randn(7, 2, 6, 6, dtype=torch.float64)
    layers, channels = [*layers, nn.Flatten()], channels * size * size
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(4, 16))
        layers += [nn.Linear(channels, width), activation()]
        channels = width
    model = nn.Sequential(*layers, nn.Linear(channels, 2))
    return model, x, draw(st.integers(0, 10**6))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(stacks(), st.sampled_from([0.1, 0.25, 0.5]))
def test_nothing_is_left_that_could_go(stack: tuple[nn.Sequential, Tensor, int], share: float) -> None:
    model, x, seed = stack
    with_zeros(model, seed, share)
    compacted = rk.compact(model)
    assert_same(model, compacted.model, x)
    needed = hidden_channels(copy.deepcopy(model), x)
    if min(needed) > 1:  # a layer of which one is left to be something: then what is before and behind it stays, too
        assert sizes(compacted.model) == needed
    for now, least in zip(sizes(compacted.model), needed, strict=True):
        assert now >= least


def test_removal_goes_on_until_nothing_changes() -> None:
    """A neuron read only by zero neurons, in front of one that nobody reads."""
    model = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)
    )
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(3))
        model[4].weight.copy_(torch.eye(3))
        model[6].weight[0, 1] = 0
    compacted = rk.compact(model.double(), torch.randn(5, 2).double())
    assert sizes(compacted.model) == [2, 2, 2]
    assert [layer.removed_outputs for layer in compacted.removed] == [(1,), (1,), (1,), ()]
    assert [layer.removed_inputs for layer in compacted.removed] == [(), (1,), (1,), (1,)]


def test_numbers_are_those_of_the_original() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    with torch.no_grad():
        model[0].weight[[0, 2]] = 0
        model[3].weight[3] = 0
    first, second, third = rk.compact(model).removed
    assert first[:5] == ("0", (0, 2), (), 2, 1)
    assert second[:5] == ("3", (3,), (0, 1, 2, 3, 8, 9, 10, 11), 4, 8)
    assert third[:5] == ("5", (), (3,), 2, 4)
    assert (first.parameters_before, first.parameters) == (4 * 4 + 4, 2 * 4 + 2)


def test_a_layer_keeps_one_channel() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    nn.init.zeros_(model[0].weight)
    compacted = rk.compact(model, torch.randn(4, 3).double())
    assert sizes(compacted.model) == [1]
    assert compacted.kept[0][:3] == ("0", "outputs", (0,)) and "last one" in compacted.kept[0].reason


def test_constants_go_into_the_next_bias() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    compacted = rk.compact(model)
    expected = model[2].weight[:, 1] / (1 + torch.exp(torch.tensor(-0.7, dtype=torch.float64)))
    torch.testing.assert_close(compacted.model[2].bias.data, expected.data, rtol=0, atol=1e-15)
    assert model[2].bias is None


def test_gradients_of_what_is_left_stay() -> None:
    for name in ("MLP", "ResNet", "gated Transformer"):
        model = with_zeros(NETWORKS[name][0](), 1)
        compacted = rk.compact(model)
        for network in (model, compacted.model):
            network.train()(batch(name)).square().sum().backward()
        removed = {layer.name: layer for layer in compacted.removed}
        for key, module in model.named_modules():
            if not isinstance(module, WEIGHTS):
                continue
            gradient = module.weight.grad
            for dim, gone in enumerate(removed[key][1:3] if key in removed else ()):
                left = [i for i in range(gradient.shape[dim]) if i not in gone]
                gradient = gradient.index_select(dim, torch.tensor(left))
            now = compacted.model.get_submodule(key).weight.grad
            torch.testing.assert_close(now, gradient, rtol=1e-10, atol=1e-12)


def test_fewer_operations_and_training_goes_on() -> None:
    model = with_zeros(NETWORKS["VGG"][0](), 3)
    small = rk.compact(model).model
    x = batch("VGG")
    flops = []
    for network in (model, small):
        with FlopCounterMode(display=False) as counter:
            network(x)
        flops.append(counter.get_total_flops())
    assert flops[1] < 0.8 * flops[0]
    optimizer = rk.optim.Adam(small.parameters(), lr=0.05, l1=1e-4)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(small(x), torch.tensor([1, 2, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_a_model_is_stays() -> None:
    model = NETWORKS["ResNet"][0]()
    with torch.no_grad():
        model.blocks[0].conv1.weight[2] = 0
    model.blocks[0].conv1.weight.requires_grad_(False)
    model.fc.bfloat16()
    model.eval()
    model.blocks[1].train()
    model = model.to(memory_format=torch.channels_last)
    small = rk.compact(model).model
    assert small.blocks[0].conv1.weight.shape[0] == 5
    for (key, old), (other, new) in zip(model.named_modules(), small.named_modules(), strict=True):
        assert key == other and type(old) is type(new) and old.training == new.training
    for (key, old), (other, new) in zip(model.named_parameters(), small.named_parameters(), strict=True):
        assert (key, old.dtype, old.device, old.requires_grad) == (other, new.dtype, new.device, new.requires_grad)
        assert type(new) is nn.Parameter and new.is_leaf
    assert small.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(param.untyped_storage().nbytes() > param.nbytes for param in small.parameters())


def test_files_of_the_result() -> None:
    small = rk.compact(with_zeros(NETWORKS["VGG"][0](), 2)).model
    small.load_state_dict(small.state_dict())
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(small)
    with torch.no_grad():
        for param in other.parameters():
            param.zero_()
    other.load_state_dict(torch.load(file))
    assert_same(small, other, batch("VGG"))
    assert_same(small, pickle.loads(pickle.dumps(small)), batch("VGG"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 2, dtype=dtype))
    with torch.no_grad():
        model[0].weight[:5] = 0
        model[0].bias[:5] = 0.5
    small = rk.compact(model, torch.randn(3, 4, dtype=dtype)).model
    assert sizes(small) == [3] and small[2].bias.dtype == dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    bias, weight, moved = (p.detach().to(wide) for p in (model[2].bias, model[2].weight[:, :5], model[0].bias[:5]))
    torch.testing.assert_close(small[2].bias.data, (bias + weight @ moved.tanh()).to(dtype))
