"""Gates, slices and scales between layers, and parts of models that cannot be traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import regkernels as rk
from tests.structure.modules import Branching, Calling

pytestmark = pytest.mark.usefixtures("one_thread")


class LayerScale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 1)
        self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.last(x * gate[:, :, None, None])


class Block(nn.Module):
    """Of a vision transformer with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.inner, self.outer = LayerScale(6), LayerScale(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.last(self.inner(nn.functional.gelu(self.first(self.norm(x))))))


def halves(cut: Callable[[Tensor], tuple[Tensor, Tensor]]) -> nn.Module:
    """Eight channels, of which number 1 and number 5 meet."""

    def forward(m: Calling, x: Tensor) -> Tensor:
        a, b = cut(m.first(x))
        return m.narrow(a.sigmoid() * b)

    return Calling(forward, nn.Linear(4, 8), narrow=nn.Linear(4, 3))


def sliced(y: Tensor) -> tuple[Tensor, Tensor]:
    half = y.shape[-1] // 2
    return y[..., :half], y[..., half:]


def split(y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = y.split(y.size(-1) // 2, dim=-1)
    return a, b


def chunked(y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = y.chunk(2, -1)
    return a, b


def written_down(y: Tensor) -> tuple[Tensor, Tensor]:
    return y[..., :4], y[..., 4:]


def split_written_down(y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = y.split(4, dim=-1)
    return a, b


SMALLER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "squeeze and excite": (SqueezeExcite, (2, 2, 6, 6), 5),
    "layer scale": (Block, (2, 5, 4), 5),
    "layer scale of images": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), LayerScale(6, 1, 1), nn.Conv2d(6, 2, 3)),
        (2, 2, 6, 6),
        5,
    ),
    "chunks": (lambda: halves(chunked), (5, 4), 6),
    "slices": (lambda: halves(sliced), (5, 4), 6),
    "split": (lambda: halves(split), (5, 4), 6),
    "slices written down": (lambda: halves(written_down), (5, 4), 8),
    "split written down": (lambda: halves(split_written_down), (5, 4), 8),
}


@torch.no_grad()
def with_dead_channels(model: nn.Module) -> nn.Module:
    """In float64, channel 1 of the first layer dead, and where it has eight, channel 5, too."""
    model = model.double().eval()
    first = next(module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    dead = [1, 5] if len(first.weight) == 8 else [1]
    first.weight[dead] = 0
    if isinstance(model, SqueezeExcite):
        first.bias[dead] = -1  # relu gives 0, which the gate cannot change
    return model


@pytest.mark.parametrize("case", SMALLER)
def test_outputs_stay(case: str) -> None:
    torch.manual_seed(0)
    make, shape, left = SMALLER[case]
    model = with_dead_channels(make())
    compacted = rk.compact(model)
    first = next(module for module in compacted.model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    assert len(first.weight) == left, compacted
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(compacted.model(x), model(x), rtol=1e-12, atol=1e-12)
    if "written down" in case:
        assert any("do not follow" in kept.reason for kept in compacted.kept)


def test_a_channel_whose_scale_is_zero_goes() -> None:
    model = Block().double().eval()
    with torch.no_grad():
        model.inner.gamma[2] = 0
    small = rk.compact(model).model
    assert small.first.out_features == len(small.inner.gamma) == small.last.in_features == 5
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x))


class Untraceable(nn.Module):
    """Parts in a loop that asks for values."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Block(), Block()])
        self.closed = nn.Sequential(Branching())

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x) if x.sum() > -1e9 else x
        return x


def test_parts_of_what_cannot_be_traced_are_made_smaller() -> None:
    model = Untraceable().double().eval()
    with torch.no_grad():
        for part in model.parts:
            part.first.weight[1] = 0
    compacted = rk.compact(model)
    assert [part.first.out_features for part in compacted.model.parts] == [5, 5]
    assert {layer.name for layer in compacted.removed} >= {"parts.0.first", "parts.1.last"}
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(compacted.model(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_layer_that_is_also_used_from_outside_of_its_part_stays() -> None:
    model = Untraceable()
    model.parts[0].first = model.also = nn.Linear(4, 6)
    with torch.no_grad():
        model.also.weight[1] = 0
    compacted = rk.compact(model)
    assert compacted.model.also.out_features == 6
    assert any("is used from outside" in kept.reason for kept in compacted.kept)


class Optional(nn.Module):
    """Its surroundings could give it what a trace would not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.first(x)
        return self.last(y if more is None else y + more)


def test_a_part_with_optional_arguments_stays() -> None:
    model = Untraceable()
    model.parts = nn.ModuleList([Optional()])
    with torch.no_grad():
        model.parts[0].first.weight[1] = 0
    compacted = rk.compact(model)
    assert compacted.parameters == compacted.parameters_before
    assert "parts.0 takes optional arguments (more)" in compacted.kept[0].reason


def test_a_part_whose_forward_depends_on_sizes_stays_and_others_do_not() -> None:
    class Dividing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) / self.first.out_features)

    model = Untraceable().double()
    model.parts.append(Dividing().double())
    with torch.no_grad():
        for part in model.parts:
            part.first.weight[1] = 0
    compacted = rk.compact(model)
    assert [part.first.out_features for part in compacted.model.parts] == [5, 5, 6]
    assert any("depends on the sizes" in kept.reason for kept in compacted.kept)


def test_layers_that_are_not_known_are_reported() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix

    own, attention = Own(), nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        own.matrix[2] = 0
        attention.in_proj_weight[1] = 0
    (kept,) = rk.compact(own).kept
    assert (kept.side, kept.channels) == ("rows", (2,)) and "Own is not a layer that is known" in kept.reason
    assert any("embed_dim" in kept.reason for kept in rk.compact(attention).kept)


MADE_BY_HOOKS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "pruning": (lambda m: prune.l1_unstructured(m, "weight", 0.5), r"prune\.remove\(module, 'weight'\)"),
    "weight norm": (weight_norm, r"remove_weight_norm\(module, 'weight'\)"),
    "spectral norm": (spectral_norm, r"remove_spectral_norm\(module, 'weight'\)"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", MADE_BY_HOOKS)
def test_weights_made_by_hooks_are_told_to_be_made_plain(case: str) -> None:
    make, remedy = MADE_BY_HOOKS[case]
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    make(model[0])
    with pytest.raises(ValueError, match=remedy):
        rk.compact(model)


def test_the_report_sees_masks_and_compaction_works_after_remove() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    prune.ln_structured(model[0], "weight", amount=2, n=2, dim=0)
    assert rk.sparsity_report(model)["0.weight_orig"].zero_rows == 2
    prune.remove(model[0], "weight")
    assert rk.compact(model).model[0].out_features == 4


def test_new_style_weight_norm_is_left_alone() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    assert rk.compact(model).parameters == sum(p.numel() for p in model.parameters())
