"""Which parameters are penalised: decided by hand for one module of every kind, and for models of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import regkernels
from regkernels import optim


def made(**shapes: tuple[int, ...]) -> nn.Module:
    """Makes a module of an unknown kind that owns parameters of these names and shapes itself."""
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


class RootNorm(nn.Module):
    """Stands for a norm of somebody else, of which only the name says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = (nn.Parameter(torch.ones(4, 5)) for _ in range(2))


class Conv1D(nn.Module):
    """Is laid out as in transformers; with one input, as here, it is one row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, 5)), nn.Parameter(torch.ones(5))


class Normal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.ones(4, 5))


class LearnedPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 5))


class LearnedPositionalEncoding(LearnedPositions):
    pass


class Scaled(nn.Linear):
    """A layer with more parameters than its kind has: they go by name and shape."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.factor, self.mixing = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(3, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10)
        self.head.weight = self.embed.weight


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Product(nn.Module):
    """Makes a tensor of two factors, as low-rank adapters do."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight, torch.eye(weight.shape[1])


def pruned() -> nn.Module:
    layer = nn.Linear(1, 5)
    prune.random_unstructured(layer, "weight", amount=2)
    prune.random_unstructured(layer, "bias", amount=2)
    return layer


def parametrised(by: type[nn.Module], name: str = "weight") -> nn.Module:
    layer = nn.Linear(4, 3)
    parametrize.register_parametrization(layer, name, by())
    return layer


def attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(8, 2, add_bias_kv=True, **options)


def of_others() -> nn.Module:
    module = made(A_log=(4, 5), D=(4,), mixing=(4, 5))
    module.A_log._no_weight_decay = True  # type: ignore[attr-defined]
    return module


NONE: list[str] = []
CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "batch norm": (lambda: nn.BatchNorm2d(3), NONE),
    "synchronised batch norm": (lambda: nn.SyncBatchNorm(3), NONE),
    "layer norm over three dimensions": (lambda: nn.LayerNorm([3, 4, 5]), NONE),
    "group norm": (lambda: nn.GroupNorm(2, 4), NONE),
    "instance norm": (lambda: nn.InstanceNorm3d(3, affine=True), NONE),
    "root mean square norm over two dimensions": (lambda: nn.RMSNorm([4, 5]), NONE),
    "a norm of somebody else": (RootNorm, NONE),
    "not a norm": (Normal, ["mean"]),
    "linear": (lambda: nn.Linear(4, 3), ["weight"]),
    "linear with one output": (lambda: nn.Linear(4, 1), ["weight"]),
    "linear without a shape": (lambda: nn.LazyLinear(3), ["weight"]),
    "bilinear": (lambda: nn.Bilinear(1, 1, 1), ["weight"]),
    "convolution of one channel": (lambda: nn.Conv2d(1, 1, 1), ["weight"]),
    "transposed convolution": (lambda: nn.ConvTranspose1d(3, 2, 1), ["weight"]),
    "matrix of transformers": (Conv1D, ["weight"]),
    "embedding": (lambda: nn.Embedding(5, 4), NONE),
    "bag": (lambda: nn.EmbeddingBag(5, 4), NONE),
    "tied": (Tied, NONE),
    "recurrent": (
        lambda: nn.LSTM(1, 4, 2, proj_size=1, bidirectional=True),
        [f"weight_{a}_l{i}{b}" for i in "01" for b in ("", "_reverse") for a in ("ih", "hh", "hr")],
    ),
    "recurrent cell": (lambda: nn.GRUCell(1, 3), ["weight_ih", "weight_hh"]),
    "attention": (attention, ["in_proj_weight", "out_proj.weight"]),
    "attention of several widths": (
        lambda: attention(kdim=3, vdim=5),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "slope": (lambda: nn.PReLU(4), NONE),
    "pruned": (pruned, ["weight_orig"]),
    "parametrised by somebody": (lambda: parametrised(Doubled), ["parametrizations.weight.original"]),
    "parametrised bias": (lambda: parametrised(Doubled, "bias"), ["weight"]),
    "factors": (
        lambda: parametrised(Product),
        ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    ),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), NONE),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), NONE),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 3)), NONE),
    "older spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), NONE),
    "more than a layer": (Scaled, ["weight", "mixing"]),
    "matrices": (lambda: made(a=(4, 5), b=(2, 3, 4), c=(1, 2, 3)), ["a", "b", "c"]),
    "vectors": (lambda: made(a=(5,), b=(1, 1, 5), c=(5, 1, 1), d=(), e=(1, 1), layer=(1, 5)), NONE),
    "tokens": (
        lambda: made(cls_token=(1, 2, 5), mask_token=(2, 5), class_tokens=(4, 5), register_tokens=(1, 4, 5)),
        NONE,
    ),
    "positions": (
        lambda: made(pos_embed=(1, 4, 5), position_embeddings=(4, 5), posEmbed=(4, 5), rel_pos_h=(4, 5), wpe=(4, 5)),
        NONE,
    ),
    "positions by class": (LearnedPositionalEncoding, NONE),
    "scales": (lambda: made(gamma=(4, 5), layer_scale=(4, 5), scales=(2, 5)), NONE),
    "biases": (lambda: made(bias=(4, 5), attention_bias=(2, 4, 5), relative_position_bias_table=(4, 5)), NONE),
    "biases in a list": (
        lambda: _with_lists(),
        ["matrices.0", "matrices.1"],
    ),
    "marked by its author": (of_others, ["mixing"]),
}


def _with_lists() -> nn.Module:
    module = nn.Module()
    module.biases = nn.ParameterList(torch.ones(4, 5) for _ in range(2))
    module.matrices = nn.ParameterList(torch.ones(4, 5) for _ in range(2))
    module.positions = nn.ParameterDict({"first": torch.ones(4, 5)})
    return module


def penalised(model: nn.Module, **options: Any) -> list[str]:
    chosen, rest = regkernels.param_groups(model, **options)
    name_of = {id(param): name for name, param in model.named_parameters()}
    both = [name_of[id(param)] for group in (chosen, rest) for param in group["params"]]
    assert sorted(both) == sorted(name_of.values()), "each parameter once"
    return both[: len(chosen["params"])]


@pytest.mark.parametrize("case", CASES)
def test_the_module_decides_then_the_name_then_the_shape(case: str) -> None:
    make, expected = CASES[case]
    model = make()
    assert sorted(penalised(model, weight_decay=0.1)) == sorted(expected)
    inside = nn.ModuleDict({"layers": nn.ModuleList([make()])})  # names of outer modules say nothing
    assert sorted(penalised(inside, weight_decay=0.1)) == sorted(f"layers.0.{name}" for name in expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_the_older_weight_norm() -> None:
    assert penalised(nn.utils.weight_norm(nn.Linear(4, 3)), weight_decay=0.1) == []


@pytest.mark.parametrize("case", ["embedding", "bag", "tied"])
def test_embeddings_are_taken_in_when_asked(case: str) -> None:
    names = {"embedding": ["weight"], "bag": ["weight"], "tied": ["embed.weight"]}
    assert penalised(CASES[case][0](), embeddings=True) == names[case]
    own = made(token_type=(3, 4), text_embed=(4, 5), mixing=(4, 5))
    assert penalised(own) == ["mixing"] and penalised(own, embeddings=True) == ["text_embed", "mixing"]


def test_scales_of_a_norm_over_several_dimensions_keep_their_bits() -> None:
    """With a strong l1 all 144 of them became 0 when dimensions alone decided."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.LayerNorm([4, 6, 6]))
    optimizer = optim.AdamW(regkernels.param_groups(model, l1=10.0, shrink_limit=None), lr=0.1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(model[1].weight, torch.ones(4, 6, 6)) and (model[0].weight == 0).all()


def test_one_that_only_a_shape_could_tell() -> None:
    class Lazy(nn.modules.lazy.LazyModuleMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.UninitializedParameter()

    with pytest.raises(ValueError, match=r"mixing has no shape yet.*run a batch through the model first"):
        regkernels.param_groups(Lazy())
    assert penalised(Lazy(), regularise=lambda name, p: True) == ["mixing"]


def test_what_is_asked_for_must_make_sense() -> None:
    with pytest.raises(TypeError, match="embeddings must be True or False, got 'wte'"):
        regkernels.param_groups(Tied(), embeddings="wte")  # type: ignore[arg-type]
    for answer in ("yes", torch.ones(2), 0.5):
        with pytest.raises(TypeError, match=r"regularise must return True, False, or None .* got .* for "):
            regkernels.param_groups(Tied(), regularise=lambda name, p, answer=answer: answer)


def test_what_regularise_says_nothing_of_keeps_its_role() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert penalised(model, regularise=lambda name, p: None) == ["1.weight", "3.weight"]
    assert penalised(model, regularise=lambda name, p: False if name == "3.weight" else None) == ["1.weight"]
    assert penalised(model, embeddings=True, regularise=lambda name, p: True if name == "1.bias" else None) == [
        *("0.weight", "1.weight", "1.bias", "3.weight")
    ]


def test_a_list_of_parameters_is_what_its_owner_makes_of_it() -> None:
    class AxialPositionEmbeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.ones(3, 3))])

    class Mixing(AxialPositionEmbeddings):
        pass

    class RowNorm(AxialPositionEmbeddings):
        pass

    assert penalised(nn.Sequential(AxialPositionEmbeddings(), Mixing(), RowNorm())) == ["1.weights.0"]
    assert penalised(nn.ParameterList([nn.Parameter(torch.ones(3, 3))])) == ["0"]


def test_complex_weights_decay_and_are_not_penalised() -> None:
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64), nn.Linear(3, 2))
    assert penalised(model, weight_decay=0.1) == ["0.weight", "1.weight"]
    for penalty in ({"l1": 0.1}, {"mcp": 0.1}, {"group_l1": 0.1}):
        assert penalised(model, weight_decay=0.1, **penalty) == ["1.weight"]
        optim.AdamW(regkernels.param_groups(model, weight_decay=0.1, **penalty))
