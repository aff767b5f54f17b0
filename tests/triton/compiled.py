"""Every kernel, compiled for every architecture, and what can be read in the result.

``python -m tests.triton.compiled [architecture ...]`` prints a table of it; ``--cache FOLDER`` keeps what was compiled. With ``--run``
the kernels that are PTX are run on the CPU instead. ``--record`` notes in docs/ptx.md what was compiled, or run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import regkernels as rk
from regkernels import reference
from regkernels.backends.triton import tables
from regkernels.backends.triton.architectures import ARCHITECTURES
from tests.support import cases, engine
from tests.support.random_numbers import placed
from tests.triton import record
from tests.triton.driver import present
from tests.triton.kernel import Kernel
from tests.triton.updates import ALWAYS, BY_GROUPS, SHIFTED, WITH_SUMS, Update, taken

OPERATORS = [
    lambda x: rk.prox.positive(x, 1.0),
    lambda x: rk.prox.weighted_l1(x, 1.0, torch.ones_like(x)),
    *(partial(getattr(rk.prox, name), strength=1.0) for name in reference.family.FAMILY),
]
"""One for each penalty but that by groups."""

DTYPES = {"l_half": torch.float64, "log_sum": torch.bfloat16}
PENALTIES = {
    of.formulas.name: (getattr(rk, f"{key}_penalty"), DTYPES.get(key, torch.float32))
    for key, of in reference.family.FAMILY.items()
}
"""By what `regkernels.reference.VALUES` calls their formulas, and the dtype for which they are compiled."""

METRICS = {"constant": torch.optim.SGD, "root": torch.optim.Adam}


def _use_everything(take: Callable[[list[Update]], list[Update]]) -> None:
    def take_step(update: Update, shape: tuple[int, ...] = (100,), **options: Any) -> nn.Parameter:
        param = nn.Parameter(torch.ones(shape, dtype=update.dtype))
        param.grad = torch.ones_like(param)
        states = None if update.wide else torch.bfloat16
        engine.make(update.rule, [param], lr=0.1, param_rounding=update.rounding, state_dtype=states, **options).step()
        return param

    always = take(ALWAYS)
    for update in take(WITH_SUMS):
        take_step(update, stats=True)
    for update in always:
        take_step(update, stats=True)
    with placed({100: [(3, 100)]}):
        for update in SHIFTED:
            take_step(update, stats=True)
    for update, dim in product(take(BY_GROUPS), (0, 1)):
        take_step(update, (2, 104), stats=True, max_norm=1.0, group_dim=dim)
    for shape, dim in ((2, 100), 0), ((2, 100), 1), ((2, 5000), 0), ((2, 66_000), 0):
        take_step(Update("adam", torch.float32), shape, stats=True, max_norm=1.0, group_dim=dim)
    take_step(Update("adam", torch.float32), capturable=True, stats=True)  # whose counts are on the device
    params = list({update.dtype: take_step(update, max_grad_norm=1.0) for update in always}.values())
    for kind in METRICS.values():
        optimizer = kind(params)
        rk.attach_prox(optimizer, 0.1, 0.1)
        optimizer.step()
    for of_one_sum in (params, params[1:]):  # with a float64 among them the sum is one, else a float32
        rk.elastic_net_penalty(of_one_sum, 1.0, 1.0).backward()
    with patch.object(tables, "MANY", 0):
        rk.elastic_net_penalty(params[1:3], 1.0, 1.0)
    for of_one_power in (rk.l1_penalty, rk.l2_penalty):
        of_one_power(params[1], 1.0).backward()
    ones = {dtype: torch.ones(10, 10, dtype=dtype, requires_grad=True) for dtype in cases.DTYPES}
    for penalty, dtype in PENALTIES.values():
        penalty(ones[dtype], 1.0).backward()
    rk.l1_penalty(ones[torch.bfloat16], 1.0, ones[torch.float32].detach()).backward()
    for dim in (1, "tensor"):  # neighbours in memory are of different groups, and of one
        rk.group_l1_penalty(ones[torch.float32], 1.0, dim).backward()
        rk.group_l1_penalty(torch.ones(8, 104, requires_grad=True), 1.0, dim).backward()  # 16 bytes at a time
    for param in params:
        rk.prox.soft_threshold(param.detach(), 1.0)
    for operator in OPERATORS:
        operator(params[1].detach())


@cache
def compiled_for(architecture: str, whole: bool = False, kept: str | None = None) -> list[Kernel]:
    """``kept``: the folder of a cache of Triton's, which is filled."""
    with present(architecture, kept) as device:
        _use_everything(list if whole else partial(taken, architecture))
    return [Kernel(architecture, kernel) for kernel in device.compiled()]


def table(architectures: list[str], kept: str | None = None) -> Table:
    result = Table(
        "kernel",
        title="Registers per thread, bytes of shared memory, 16-byte loads + stores",
        caption="Spills would stand in brackets.",
    )
    rows: dict[str, list[str]] = {}
    for architecture in architectures:
        result.add_column(architecture, justify="right")
        for kernel in compiled_for(architecture, whole=True, kept=kept):
            registers, shared, spilled = kernel.usage
            cell = f"{registers:3} {shared:6,} {kernel.wide_loads:2}+{kernel.wide_stores}"
            rows.setdefault(kernel.name, []).append(f"{cell} ({spilled})" if spilled else cell)
    for name, cells in rows.items():
        result.add_row(name, *cells)
    return result


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.triton.compiled")
    parser.add_argument("architecture", nargs="*", help=f"of {', '.join(ARCHITECTURES)}; default: all")
    parser.add_argument("--cache", metavar="FOLDER", help="keep what is compiled, for TRITON_CACHE_DIR on a device")
    parser.add_argument("--run", action="store_true", help="run the PTX of NVIDIA's architectures on the CPU instead")
    parser.add_argument("--record", action="store_true", help="note in docs/ptx.md what was compiled, or run")
    options = parser.parse_args(arguments)
    for name in options.architecture:
        if name not in ARCHITECTURES:
            parser.error(f"unknown target {name!r}: name some of {', '.join(ARCHITECTURES)}")
    if options.run:
        from tests.triton.ptx import everything  # which imports this module

        everything.main(options.architecture, options.record)
    architectures = options.architecture or list(ARCHITECTURES)
    found = table(architectures, options.cache)
    for architecture in architectures if options.record else ():
        record.write(architecture, "compiled", len(compiled_for(architecture, whole=True, kept=options.cache)))
    Console(width=None if sys.stdout.isatty() else 160).print(found)


if __name__ == "__main__":
    main(sys.argv[1:])
