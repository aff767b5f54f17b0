"""What is compared on a GPU. A case is built when its turn comes, as several would not fit into memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import regkernels
from benchmarks import device, shapes
from benchmarks.optimizer_step import BYTES_PER_ELEMENT, L1, L2, elements, parameters, textbook_step
from benchmarks.penalty import eager_penalty
from benchmarks.timing import Case, Contender

DEVICE = "cuda"
SIZES = {"100 M": 100_000_000, "1 B": 1_000_000_000}
GPT2, LLAMA = "GPT-2 small, 148 tensors, 124 M", "Llama 3.2 1B, 146 tensors, 1.24 B"


def torchs(name: str, label: str, params: list[nn.Parameter], **options: Any) -> Contender:
    return Contender(label, getattr(torch.optim, name)(params, lr=1e-3, **options).step)


def ours(name: str, params: list[nn.Parameter], label: str = "", **options: Any) -> Contender:
    optimizer = getattr(regkernels.optim, name)(params, lr=1e-3, l1=L1, stats=True, **options)
    return Contender(label or f"regkernels {name} + L1 + stats", optimizer.step)


def flat(name: str, params: list[nn.Parameter], **options: Any) -> Contender:
    """The parameters know the owner of their buffers weakly, so the contender keeps it."""
    owner = regkernels.FlatParameters(params)
    contender = ours(name, params, "the same, FlatParameters", **options)
    run = contender.run
    contender.run = lambda owner=owner: run()
    return contender


def compiled(name: str, params: list[nn.Parameter], **options: Any) -> list[Contender]:
    """None where this torch cannot compile it. The rate is a tensor, as otherwise each new value would be compiled."""
    lr = torch.tensor(1e-3, device=DEVICE)
    optimizer = getattr(torch.optim, name)(params, lr=lr, **options)

    @torch.compile
    def step() -> None:
        optimizer.step()

    try:
        for _ in range(3):  # the second call finds states and is compiled anew
            step()
    except Exception as error:
        print(f"left out: compiled {name} ({repr(error)[:200]})", flush=True)
        return []
    return [Contender(f"torch {name} compiled", step)]


def one_tensor(size: str) -> Case:
    of = shapes.equal(1, SIZES[size])
    make = partial(parameters, of, DEVICE)
    return Case(
        "AdamW step",
        f"one tensor of {size}",
        [
            torchs("AdamW", "torch AdamW fused", make(), fused=True),
            torchs("AdamW", "torch AdamW foreach", make(), foreach=True),
            *compiled("AdamW", make(), capturable=DEVICE == "cuda"),
            ours("AdamW", make()),
        ],
        BYTES_PER_ELEMENT * elements(of),
        clock=device.device_time,
    )


def sgd(momentum: float) -> Case:
    of = shapes.equal(1, SIZES["100 M"])
    name = f"SGD, momentum {momentum}" if momentum else "SGD"
    return Case(
        "SGD step",
        f"{name}, one tensor of 100 M",
        [
            torchs("SGD", "torch SGD fused", parameters(of, DEVICE), momentum=momentum, fused=True),
            *compiled("SGD", parameters(of, DEVICE), momentum=momentum),
            ours("SGD", parameters(of, DEVICE), momentum=momentum),
        ],
        (20 if momentum else 12) * elements(of),
        clock=device.device_time,
    )


def half_precision() -> Case:
    """torch keeps bfloat16 states, ours are float32: the bytes differ, and so does what survives rounding."""
    of = shapes.equal(1, SIZES["100 M"])
    theirs, own = (parameters(of, DEVICE, torch.bfloat16) for _ in range(2))
    contenders = [
        torchs("AdamW", "torch AdamW fused, bfloat16 states", theirs, fused=True),
        ours("AdamW", own, "regkernels AdamW + L1 + stats, float32 states"),
    ]
    for contender, width in zip(contenders, (14, 22), strict=True):
        contender.bytes_moved = width * elements(of)
    return Case("AdamW step", "bfloat16 weights, one tensor of 100 M", contenders, 0, clock=device.device_time)


def gpt2() -> Case:
    of = shapes.gpt2_small()
    make = partial(parameters, of, DEVICE)
    recipe = make()
    recipe_optimizer = torch.optim.AdamW(recipe, fused=True)
    textbook = Contender("textbook recipe + torch AdamW fused", lambda: textbook_step(recipe, recipe_optimizer))
    contenders = [
        torchs("AdamW", "torch AdamW fused", make(), fused=True),
        torchs("AdamW", "torch AdamW foreach", make(), foreach=True),
        textbook,
        ours("AdamW", make()),
        flat("AdamW", make()),
    ]
    return Case("AdamW step", GPT2, contenders, BYTES_PER_ELEMENT * elements(of), clock=device.device_time)


def llama() -> Case:
    of = shapes.llama_1b()
    make = partial(parameters, of, DEVICE)
    contenders = [
        torchs("AdamW", "torch AdamW fused", make(), fused=True),
        ours("AdamW", make()),
        flat("AdamW", make()),
    ]
    return Case("AdamW step", LLAMA, contenders, BYTES_PER_ELEMENT * elements(of), clock=device.device_time)


def clipping() -> Case:
    of = shapes.gpt2_small()
    clipped = parameters(of, DEVICE)
    fused = torch.optim.AdamW(clipped, fused=True)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        fused.step()

    contenders = [
        Contender("clip_grad_norm_ + torch AdamW fused", clip_and_step),
        ours("AdamW", parameters(of, DEVICE), "regkernels AdamW + L1 + stats, max_grad_norm", max_grad_norm=1.0),
    ]
    moved = (BYTES_PER_ELEMENT + 4) * elements(of)
    return Case("AdamW step with clipping", GPT2, contenders, moved, clock=device.device_time)


def many_small(count: int, size: int, clock: str) -> Case:
    of = shapes.equal(count, size)
    make = partial(parameters, of, DEVICE)
    contenders = [
        torchs("AdamW", "torch AdamW fused", make(), fused=True),
        ours("AdamW", make()),
        flat("AdamW", make()),
    ]
    question, time, moved = {
        "wall": ("many small tensors, wall time", device.wall_time, BYTES_PER_ELEMENT * elements(of)),
        "host": ("many small tensors, host time", device.host_time, 0),
    }[clock]
    return Case(question, f"{count} x {size}", contenders, moved, clock=time)


def penalty(backward: bool) -> Case:
    params = [nn.Parameter(0.02 * torch.randn(SIZES["100 M"], device=DEVICE))]
    name = "one tensor of 100 M"

    def drop_gradients() -> None:
        for param in params:
            param.grad = None

    functions: dict[str, Callable[[], torch.Tensor]] = {
        "eager": lambda: eager_penalty(params),
        "regkernels": lambda: regkernels.elastic_net_penalty(params, L1, L2),
    }
    if backward:
        contenders = [
            Contender(label, lambda run=run: run().backward(), drop_gradients) for label, run in functions.items()
        ]
        moved = 12 * elements([param.shape for param in params])
        return Case("elastic net penalty, forward + backward", name, contenders, moved, clock=device.device_time)
    contenders = [Contender(label, torch.no_grad()(run)) for label, run in functions.items()]
    moved = 4 * elements([param.shape for param in params])
    return Case("elastic net penalty, forward", name, contenders, moved, "read", device.device_time)


def builders(quick: bool) -> Iterator[Callable[[], Case]]:
    """All cases; ``quick``: without those of a billion parameters."""
    yield partial(one_tensor, "100 M")
    if not quick:
        yield partial(one_tensor, "1 B")
        yield llama
    yield gpt2
    yield clipping
    yield half_precision
    yield from (partial(sgd, momentum) for momentum in (0.0, 0.9))
    yield from (partial(many_small, count, size, "wall") for count, size in ((1000, 1000), (2000, 64)))
    yield partial(many_small, 1000, 1000, "host")
    yield from (partial(penalty, backward) for backward in (False, True))
