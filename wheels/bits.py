"""Compares what builds for several processors compute, in every bit, on one machine: driver.cpp under an emulator."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def compare(source: Path, processors: Sequence[str], work: Path, compiler: Callable[[str, str], str]) -> None:
    """Runs the driver for each of ``processors``, with each instruction set that it has, and refuses any difference."""
    outputs: dict[str, list[str]] = {}
    for processor in processors:
        command = [*_runner(processor), str(_driver(source, processor, work / f"driver-{processor}", compiler))]
        for name in _output([*command, "--list"]):
            outputs[f"{processor} {name}"] = _output([*command, name])
    (first, lines), *others = outputs.items()
    for name, other in others:
        different = [f"  {a}\n  {b}" for a, b in zip(lines, other, strict=True) if a != b]
        if different:
            sys.exit(f"{first} and {name} differ in {len(different)} cases of {len(lines)}, the first:\n{different[0]}")
    print(f"{len(lines)} cases have the same bits with {', '.join(outputs)}")


def _driver(source: Path, processor: str, build: Path, compiler: Callable[[str, str], str]) -> Path:
    """Builds the driver with a C library inside, as an emulator has none for it."""
    import pybind11

    environment = {**os.environ, "CXX": compiler(processor, "musl")}
    configure = ["cmake", f"-S{source}", f"-B{build}", "-GNinja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    subprocess.run([*configure, "-DCMAKE_EXE_LINKER_FLAGS=-static"], check=True, env=environment)
    subprocess.run(["cmake", "--build", str(build), "--target", "driver"], check=True, env=environment)
    return build / "driver"


def _runner(processor: str) -> list[str]:
    if processor == platform.machine():
        return []
    emulator = f"qemu-{processor}"
    if shutil.which(emulator) is None:
        sys.exit(
            f"the wheels are built, but what the one for {processor} computes was not compared: {emulator} is not installed "
            f"(Debian, Ubuntu: apt install qemu-user), or name the processors: make wheel ARGS={platform.machine()}"
        )
    return [emulator]


def _output(command: list[str]) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
