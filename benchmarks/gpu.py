"""``python -m benchmarks.gpu``: the questions of `benchmarks`, asked of a GPU. Prints tables, keeps a record."""

from __future__ import annotations

import argparse
import gc
import platform

import torch

from benchmarks import device, gpu_cases
from benchmarks.record import Record, Row
from benchmarks.timing import measure
from regkernels.backends.gpu import version as triton_version

ELEMENTS = 1 << 29
"""Of the arrays that the limits are measured with: 2 GiB of float32, many times what caches hold."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the record under benchmarks/results/")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing of a billion parameters")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false")
    run(quick=arguments.quick, save=arguments.save)


def run(*, quick: bool, save: bool) -> Record:
    torch.manual_seed(0)
    rounds, burst = (3, 3) if quick else (10, 4)
    record = new_record()
    print(f"{record.machine} ({record.instruction_set}), {record.versions}", flush=True)
    print(f"limits in GB/s: {record.limits_gb_per_s}", flush=True)
    for build in gpu_cases.builders(quick):
        try:
            case = build()
            rows = measure(case, record.limits_gb_per_s, rounds=rounds, burst=burst, tick=lambda: None)
        except torch.OutOfMemoryError as error:
            print(f"\nleft out, the memory of this device is too small: {str(error).splitlines()[0]}", flush=True)
            rows = []
        case = None  # before the next one is built
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows:
            record.rows += rows
            print(f"\n{table(rows)}", flush=True)
        if save:  # each time, so that an interrupted run leaves what it has
            path = record.save()
    if save:
        print(f"\nrecord: {path}")
    return record


def new_record() -> Record:
    record = Record(
        machine=torch.cuda.get_device_name(0),
        device="gpu",
        instruction_set=device.architecture(),
        limits_gb_per_s=device.limits(gpu_cases.DEVICE, ELEMENTS),
    )
    accelerator = "ROCm" if torch.version.hip else "CUDA"
    record.versions |= {
        "triton": triton_version(),
        accelerator: str(torch.version.hip or torch.version.cuda),
        "processor": platform.processor() or platform.machine(),
    }
    return record


def table(rows: list[Row]) -> str:
    lines = [
        f"{rows[0].question}: {rows[0].case}",
        f"  {'contender':48}{'ms':>10}{'20 %':>10}{'80 %':>10}{'GB/s':>8}{'limit':>7}{'ratio':>8}{'ms cold':>10}",
    ]
    for row in rows:
        rate = f"{row.gigabytes_per_second:8.0f}{row.percent_of_limit:6.0f}%" if row.bytes_moved else 15 * " "
        lines.append(
            f"  {row.contender:48}{row.warm_ms:10.4f}{row.low_ms:10.4f}{row.high_ms:10.4f}{rate}{row.speedup:8.2f}"
            f"{row.cold_ms:10.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
