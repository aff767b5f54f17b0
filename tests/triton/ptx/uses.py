"""What is run on the machine: all that `tests.triton.compiled` compiles, on numbers and shapes that bring it into all branches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import regkernels as rk
from regkernels import reference
from regkernels.backends.triton import architectures
from tests.support import cases, engine
from tests.support.hostile import PRECISION
from tests.support.random_numbers import placed
from tests.triton.ptx import rows, second_stages
from tests.triton.updates import ALWAYS, BY_GROUPS, SHIFTED, WITH_SUMS, Update

MISALIGNED = 5003

SIZES = (3, 2061, MISALIGNED, 12299, 4107, 530, 1030, 262)
"""Of weights: less than a block; some blocks and a rest; the same, not at a multiple of 16 bytes; more than a chunk, in both of which
there are blocks; then of each kernel and type a single block and a rest."""

SHAPES = {0: [(5, 104), (70, 72), (9, 128), (65, 104)], 1: [(5, 104), (37, 40), (300, 8), (2, 16)]}
"""By the dimension whose indices are groups: rows that a program holds, and columns of which it has many."""

OTHER_SHAPES = {
    0: [(5, 700), (2, 64), (3, 65), (2, 66_000), (40, 3), (3, 5000), (33, 5), (2, 33), (3, 64)],
    1: [(9, 2, 70), (2, 3, 64), (1, 4, 600), (2, 1, 70), (37, 33), (5, 2), (3, 4, 9), (2, 4, 40), (3, 6)],
}
"""Groups of every other kind: in several runs, shared by programs, and where no 16 bytes can be moved at a time."""

RUNS = [
    *((2, 2, length + more) for length in range(72, 2048, 128) for more in (0, 1)),
    *((200, 5, 7), (90, 70, 3), (130, 5, 63), (300, 72), (500, 8), (40, 3, 136)),
]
"""Of groups along dimension 1: a run ends in each place of a tile, tiles begin within runs, and pieces of several groups follow each other."""

Outcome = dict[str, Tensor]


class Use(NamedTuple):
    name: str
    facts: tuple[Hashable, ...]
    run: Callable[[], Outcome]
    depends_on_sums: bool = False  # whether weights do, which the reference forms in another order

    def check(self, got: Outcome, expected: Outcome) -> None:
        """Raises where an outcome is not the reference's: in every bit, but for sums and, in float64, what depends on them."""
        assert got.keys() == expected.keys()
        precision = PRECISION if architectures.of_device(torch.device("cpu")).pairs else 1e-12
        for name, tensor in expected.items():
            if name.startswith(("stats", "value")) or (self.depends_on_sums and tensor.dtype == torch.float64):
                rtol = precision if tensor.dtype == torch.float64 else 1e-6
                finite = tensor[tensor.isfinite()]
                atol = rtol * (finite.abs().max().item() if finite.numel() else 0.0)
                torch.testing.assert_close(got[name], tensor, rtol=rtol, atol=atol, equal_nan=True, msg=name)
            else:
                engine.assert_same_bits(got[name], tensor, name)


def _numbers(shape: Sequence[int] | int, dtype: torch.dtype, misaligned: bool = False, special: bool = False) -> Tensor:
    """Returns random numbers, among them zeros, and none of them where a 16-byte load may begin if ``misaligned``. ``special``: and
    infinities and NaN, at every place of a vector."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    numel = torch.Size(shape).numel()
    values = torch.randn(numel + 1)
    values[1::5] = 0.0
    if special:
        values[::7], values[3::11], values[5::13] = torch.nan, torch.inf, -torch.inf
    return values.to(dtype)[1 if misaligned else 0 :][:numel].view(shape)


# --- steps ---

_STRENGTHS: list[dict[str, Any]] = [
    {"lr": 0.1, "l1": 0.05, "weight_decay": 0.1},
    {"lr": 0.03, "l1": 0.02, "weight_decay": 0.2, "weight_decay_mode": "prox"},
    {"lr": 0.03, "l1": 0.02, "weight_decay": 0.1, "l1_mode": "subgradient", "weight_decay_mode": "coupled"},
    {"lr": 0.0, "l1": 0.05},
]
"""One for each param group: each step of the specification is taken by one of them and left out by another."""


def _step(update: Update, by_dim: dict[int, list[Any]] | None, options: dict[str, Any]) -> Outcome:
    """Takes two steps, and between them one that is left out where the ``options`` say that it may be."""
    torch.manual_seed(3)
    skips = "skip_nonfinite" in options
    shapes: list[Any] = list(SIZES) if by_dim is None else [*by_dim[0], *by_dim[1]]
    params = [nn.Parameter(_numbers(shape, update.dtype, shape == MISALIGNED)) for shape in shapes]
    count = len(_STRENGTHS)
    groups = [{"params": params[k::count], **strengths} for k, strengths in enumerate(_STRENGTHS)]
    if by_dim is not None:
        of_dim = [(dim, params[dim * len(params) // 2 :][: len(params) // 2]) for dim in (0, 1)]
        groups = [
            {"group_l1": 0.3, "max_norm": 1.0, **strengths, "params": half[k::count], "group_dim": dim}
            for dim, half in of_dim
            for k, strengths in enumerate(_STRENGTHS)
        ]
        groups[count]["weight_decay_mode"] = "cautious"
    if update.rule in cases.WITHOUT_METRIC:
        groups = [{"l1_mode": "decoupled", **group, "weight_decay_mode": "decoupled"} for group in groups]
    optimizer = engine.make(
        update.rule,
        groups,
        lr=0.1,
        param_rounding=update.rounding,
        state_dtype=None if update.wide else torch.bfloat16,
        seed=11,
        **options,
    )
    for number in range(3 if skips else 2):
        for param, shape in zip(params, shapes, strict=True):
            param.grad = _numbers(shape, update.dtype, shape == MISALIGNED)
        if number == 1 and skips:
            for param in params:
                param.grad.view(-1)[0] = torch.inf
        optimizer.step()
    return engine.snapshot(optimizer)


def _shifted_step(update: Update) -> Outcome:
    with placed({size: [(3, size)] for size in SIZES}):
        return _step(update, None, {"stats": True})


def _steps() -> Iterator[Use]:
    with_sums, clipped = {"stats": True}, {"max_grad_norm": 1.0}
    for update in [*ALWAYS, *WITH_SUMS]:
        yield Use(f"step {_words(update)} with sums", ("step", *update), partial(_step, update, None, with_sums))
    for update in ALWAYS:
        yield Use(
            f"step {_words(update)} clipped", ("clipped", update.dtype), partial(_step, update, None, clipped), True
        )
    options = {"stats": True, "skip_nonfinite": True}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        run = partial(_step, Update("adam", dtype), None, options)
        yield Use(f"step adam {str(dtype)[6:]} left out", ("left out", dtype), run)
    run = partial(_step, Update("adam", torch.bfloat16, "stochastic"), SHAPES, options)
    yield Use("step adam bfloat16 stochastic by groups left out", ("by groups left out",), run, True)
    for update in SHIFTED:
        yield Use(f"step {_words(update)} of a part", ("shifted", *update[1:]), partial(_shifted_step, update))
    for update in BY_GROUPS:
        run = partial(_step, update, SHAPES, with_sums)
        yield Use(f"step {_words(update)} by groups", ("by groups", *update[1:]), run, True)
    for rule in ("adam", "sgd"):
        update = Update(rule, torch.float32)
        run = partial(_step, update, OTHER_SHAPES, with_sums)
        yield Use(f"step {_words(update)} by other groups", ("by other groups",), run, True)


def _words(update: Update) -> str:
    words = [update.rule, str(update.dtype)[6:], update.rounding, "" if update.wide else "narrow"]
    return " ".join(word for word in words if word not in ("", "nearest"))


# --- proximal operators ---


def _operator(operator: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Outcome:
    torch.manual_seed(5)
    return {f"x of {size}": operator(_numbers(size, dtype, size == MISALIGNED, True)) for size in SIZES}


def _attached(kind: type[torch.optim.Optimizer], dtype: torch.dtype) -> Outcome:
    torch.manual_seed(7)
    params = [nn.Parameter(_numbers(size, dtype, size == MISALIGNED)) for size in SIZES]
    numbers = zip(params, (0.0, 0.1, 0.2, 0.3) * 2, (0.1, 0.0, 0.1, 0.1) * 2, strict=True)
    groups = [{"params": [param], "lr": lr, "prox_weight_decay": decay} for param, lr, decay in numbers]
    optimizer = kind(groups)
    rk.attach_prox(optimizer, 0.1, 0.1)
    for param in params:
        param.grad = _numbers(param.shape, dtype)
    optimizer.step()
    return engine.snapshot(optimizer)


def _operators() -> Iterator[Use]:
    operators: dict[str, Callable[[Tensor], Tensor]] = {
        "positive": lambda x: rk.prox.positive(x, 0.3),
        "weighted_l1": lambda x: rk.prox.weighted_l1(x, 0.3, torch.linspace(0, 2, x.numel()).to(x.dtype)),
    }
    operators |= {key: partial(getattr(rk.prox, key), strength=0.3) for key in reference.family.FAMILY}
    for key, operator in operators.items():
        yield Use(f"prox.{key}", ("prox", key, torch.float32), partial(_operator, operator, torch.float32))
    for dtype in cases.DTYPES:
        shrunk = partial(_operator, lambda x: rk.prox.soft_threshold(x, 0.3), dtype)
        yield Use(f"prox.soft_threshold {str(dtype)[6:]}", ("soft_threshold", dtype), shrunk)
        for kind in (torch.optim.SGD, torch.optim.Adam):
            name = f"attach_prox {kind.__name__} {str(dtype)[6:]}"
            yield Use(name, ("attach", kind, dtype), partial(_attached, kind, dtype))


# --- terms of the loss ---


def _penalty(
    penalty: Callable[[list[Tensor]], Tensor],
    shapes: Iterable[Any],
    dtypes: Iterable[torch.dtype],
    special: bool = False,
) -> Outcome:
    torch.manual_seed(9)
    pairs = list(product(shapes, dtypes))
    tensors = [_numbers(shape, dtype, shape == MISALIGNED, special).requires_grad_() for shape, dtype in pairs]
    for tensor in tensors:
        tensor.retain_grad()
    value = penalty(tensors)
    (value * 3.0).backward()
    gradients = {f"gradient {k} of {pairs[k]}": tensor.grad for k, tensor in enumerate(tensors)}
    return {"value": value.detach(), **gradients}


def _weighted(tensors: list[Tensor]) -> Tensor:
    factors = [(torch.arange(x.numel()) % 3 / 2).to(reference.compute_dtype(x.dtype)) for x in tensors]  # 0, 1/2 and 1
    return rk.l1_penalty(tensors, 0.7, factors)


def _of_columns(tensors: list[Tensor]) -> Tensor:
    with torch.no_grad():
        for tensor in tensors:
            tensor[:, ::3].zero_()  # groups whose norm is 0
    return rk.group_l1_penalty(tensors, 0.7, dim=1)


def _penalties() -> Iterator[Use]:
    elastic_net = partial(rk.elastic_net_penalty, l1=0.3, l2=0.2)
    of_one_sum = ([torch.float64], [torch.float32, torch.float16, torch.bfloat16])
    for dtypes, special in product(of_one_sum, (False, True)):
        name = " ".join(str(dtype)[6:] for dtype in dtypes) + " at NaN" * special
        run = partial(_penalty, elastic_net, SIZES, dtypes, special)
        yield Use(f"elastic_net_penalty {name}", ("l1, l2", *dtypes, special), run)
    for key in reference.family.FAMILY:
        dtype = {"l_half": torch.float64, "log_sum": torch.bfloat16}.get(key, torch.float32)
        penalty = partial(getattr(rk, f"{key}_penalty"), strength=0.3)
        yield Use(f"{key}_penalty", ("penalty", key, dtype), partial(_penalty, penalty, SIZES, [dtype]))
    for name, special in (("", False), (" at NaN", True)):
        run = partial(_penalty, _weighted, SIZES, [torch.bfloat16], special)
        yield Use(f"l1_penalty with weights{name}", ("weighted", special), run)
    for dim in (0, 1):
        penalty = partial(rk.group_l1_penalty, strength=0.7, dim=dim)
        long = [(2, 70000), (3, 5001)] if dim == 0 else [(3000, 3)]
        shapes = [*OTHER_SHAPES[dim], (90, 200), (70, 9), *long]
        run = partial(_penalty, penalty, shapes, [torch.float32])
        yield Use(f"group_l1_penalty of {dim}", ("group penalty", dim), run, True)
    run = partial(_penalty, _of_columns, RUNS, [torch.float32])
    yield Use("group_l1_penalty of runs of every length", ("group penalty", 1), run, True)


USES = [
    *_steps(),
    *_operators(),
    *_penalties(),
    Use("rows", ("rows",), rows.computed),
    *(Use(*stage) for stage in second_stages.found()),
]


def selected(uses: Sequence[Use] = USES) -> list[Use]:
    """Returns some in which every fact of all is found; each adds the most that those before it lack."""
    chosen: list[Use] = []
    missing = {fact for use in uses for fact in _pairs(use)}
    while missing:
        best = max(uses, key=lambda use: len(missing & _pairs(use)))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(use: Use) -> set[Hashable]:
    """Returns its facts; of what it is by, and its type together."""
    return {(use.facts[0], fact) for fact in use.facts[1:]} | {use.facts[0]}
