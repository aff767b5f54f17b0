"""The speed of the kernels on NVIDIA's chips, as predicted from what they are compiled to. Nothing is run, nothing is measured.

``python -m tests.triton.predicted [--record] [architecture ...]`` prints a table; ``--record`` also writes it to where `RECORD` and
`PAGE` say. It compiles for a minute per architecture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import nn

import regkernels as rk
from regkernels.backends.triton.cuts import SPANS
from regkernels.backends.triton.kernels import group_values
from regkernels.backends.triton.kernels.columns import CHUNK
from tests import ROOT
from tests.support import engine
from tests.triton.driver import present
from tests.triton.kernel import Kernel
from tests.triton.model.chips import CHIPS
from tests.triton.model.prediction import COLUMNS, Prediction, Work, predict
from tests.triton.traffic import bytes_moved

RECORD, PAGE = ROOT / "benchmarks" / "results" / "predicted" / "gpus.json", ROOT / "docs" / "predicted_speed.md"
BEGIN, END = "<!-- predictions: begin -->\n", "<!-- predictions: end -->"


class Case(NamedTuple):
    """Names a kernel, what launches it, and how many elements a program of it has; where those are not the chunk's, of the shape."""

    name: str
    function: str
    use: Callable[[], object]
    elements: int = CHUNK.value


def step(name: str, rule: str, dtype: torch.dtype, rounding: str = "nearest", wide: bool = True) -> list[Case]:
    """A step, without sums and with them."""

    def use(stats: bool) -> None:
        param = nn.Parameter(torch.ones(100, dtype=dtype))
        param.grad = torch.ones_like(param)
        states = None if wide else torch.bfloat16
        make = engine.make(rule, [param], lr=0.1, param_rounding=rounding, state_dtype=states, stats=stats)
        make.step()

    return [Case(name + " with sums" * stats, "update", lambda stats=stats: use(stats)) for stats in (False, True)]


def of_tensor(
    name: str, function: str, use: Callable[[Any], Any], dtype: torch.dtype, elements: int = CHUNK.value
) -> Case:
    """A penalty, or its gradient."""

    def launch() -> None:
        result = use(torch.ones(64, 1024, dtype=dtype, requires_grad=True))
        if function.endswith(("elementwise", "slope", "gradient")):
            result.backward()

    return Case(name, function, launch, elements)


def norm(dtype: torch.dtype) -> None:
    param = nn.Parameter(torch.ones(100, dtype=dtype))
    param.grad = torch.ones_like(param)
    rk.optim.SGD([param], lr=0.1, max_grad_norm=1.0).step()


def by_groups(name: str, shape: tuple[int, int], dim: int, elements: int) -> Case:
    """AdamW's step with the group lasso, without sums; ``elements``: of a program."""

    def use() -> None:
        param = nn.Parameter(torch.ones(shape))
        param.grad = torch.ones_like(param)
        rk.optim.AdamW([param], group_l1=0.1, group_dim=dim).step()

    resident = dim == 0 and shape[1] <= SPANS[-1]
    return Case(f"group step, {name}", "update_resident" if resident else "update_groups", use, elements)


CASES = [
    *step("AdamW float32", "adam", torch.float32),
    *step("AdamW bfloat16", "adam", torch.bfloat16),
    *step("AdamW bfloat16, stochastic", "adam", torch.bfloat16, "stochastic"),
    *step("AdamW bfloat16, remainder", "adam", torch.bfloat16, "remainder"),
    *step("AdamW bfloat16, stochastic, states too", "adam", torch.bfloat16, "stochastic", wide=False),
    *step("SGD float32", "sgd", torch.float32),
    *step("SGD bfloat16", "sgd", torch.bfloat16),
    *step("momentum float32", "momentum", torch.float32),
    Case("gradient norm float32", "reduce", lambda: norm(torch.float32)),
    Case("gradient norm bfloat16", "reduce", lambda: norm(torch.bfloat16)),
    of_tensor("L1 penalty bfloat16", "reduce", lambda w: rk.l1_penalty(w, 1.0), torch.bfloat16),
    of_tensor("L1 gradient float32", "elementwise", lambda w: rk.l1_penalty(w, 1.0), torch.float32),
    of_tensor("log-sum penalty float32", "reduce_value", lambda w: rk.log_sum_penalty(w, 1.0), torch.float32),
    of_tensor(
        "group penalty, rows", "group_squares", lambda w: rk.group_l1_penalty(w, 1.0, 0), torch.float32,
        group_values.CHUNK.value,
    ),
    of_tensor(
        "group penalty, columns", "group_squares", lambda w: rk.group_l1_penalty(w, 1.0, 1), torch.float32,
        group_values.CHUNK.value,
    ),
    of_tensor(
        "group gradient", "group_gradient", lambda w: rk.group_l1_penalty(w, 1.0, 0), torch.float32,
        group_values.CHUNK.value,
    ),
    *(by_groups(f"rows of {size}", (2, size), 0, CHUNK.value) for size in (64, 256, 1024, 4096)),
    by_groups("rows of 16384", (2, 16384), 0, 16384),
    by_groups("columns of 1024", (1024, 64), 1, 32 * 1024),
]  # fmt: skip


def kernel_of(case: Case, architecture: str) -> Kernel:
    with present(architecture) as device:
        case.use()
    found = [Kernel(architecture, kernel) for kernel in device.compiled()]
    (kernel,) = [kernel for kernel in found if kernel.function == case.function]
    return kernel


def work_of(case: Case, kernel: Kernel) -> Work:
    read, written = (sum(sizes) for sizes in bytes_moved(kernel))
    registers, shared, _ = kernel.usage
    return Work(case.elements, read, written, case.elements // kernel.block, kernel.warps, registers, shared)


def row(case: Case, architecture: str) -> dict[str, Any]:
    """What the record says of a case."""
    kernel = kernel_of(case, architecture)
    found: Prediction = predict(kernel.machine_code, work_of(case, kernel), CHIPS[architecture])
    return {
        "kernel": case.name,
        "architecture": architecture,
        "device": CHIPS[architecture].device,
        "registers": kernel.usage.registers,
        "spilled": kernel.usage.spilled,
        "wide_loads": kernel.wide_loads,
        "wide_stores": kernel.wide_stores,
        "instructions": round(found.total, 1),
        **{unit: round(count, 1) for unit, count in found.instructions.items()},
        "warps": found.warps,
        "bytes_in_flight": found.in_flight,
        "bound": found.bound,
        "percent_of_copy": round(found.percent),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = {"kernel": "kernel", "architecture": "target", "registers": "registers", "instructions": "all"}
    columns |= {name: name for name in COLUMNS} | {
        "bytes_in_flight": "in flight",
        "bound": "bound",
        "percent_of_copy": "%",
    }
    result = Table(title="Predicted, not measured: instructions per element, bytes in flight, % of a copy's bandwidth")
    for title in columns.values():
        result.add_column(title, justify="left" if title in ("kernel", "target", "bound") else "right")
    for each in rows:
        result.add_row(*(f"{each[key]:,}" if key == "bytes_in_flight" else str(each[key]) for key in columns))
    return result


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the page: predicted percents, and what bounds them, by device."""
    devices = list(dict.fromkeys(each["device"] for each in rows))
    lines = [f"| kernel | {' | '.join(devices)} |", "|---|" + "---|" * len(devices)]
    for name in dict.fromkeys(each["kernel"] for each in rows):
        of_kernel = [each for each in rows if each["kernel"] == name]
        cells = {each["device"]: f"{each['percent_of_copy']} ({each['bound']})" for each in of_kernel}
        lines.append(f"| {name} | {' | '.join(cells.get(device, '') for device in devices)} |")
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], record: Path = RECORD, page: Path = PAGE) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    record.write_text(json.dumps({"predicted": True, "versions": versions, "rows": rows}, indent=1) + "\n")
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + markdown(rows) + END + rest.partition(END)[2])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.triton.predicted", description="Minutes for each target.")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(CHIPS)}; default: all")
    parser.add_argument("--record", action="store_true", help=f"keep the result in {RECORD.name}, and its page")
    options = parser.parse_args(arguments)
    for name in options.target:
        if name not in CHIPS:
            parser.error(f"unknown target {name!r}: name some of {', '.join(CHIPS)}")
    rows = [row(case, target) for target in options.target or CHIPS for case in CASES]
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows))
    if options.record:
        write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
