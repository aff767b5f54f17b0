"""Builds wheels for this version of Python, for each processor, with a compiler that knows all of them: `make wheel`.

Each is made of the sdist, as a distributor would, linked to a C library so old that every current Linux has a newer one, and
has what it needs from C++ inside. Then `check` tries the wheel for this processor and `bits` compares what processors compute.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from wheels import bits, installed

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "wheels"
DIST = ROOT / "dist"

PROCESSORS = ("x86_64", "aarch64")
GLIBC = "2.17"
"""The oldest C library to run on: of 2012, manylinux2014. Nothing newer is called."""


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, **environment})


def sources() -> Path:
    """Makes an sdist and returns where it was unpacked."""
    shutil.rmtree(WORK, ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", WORK, ROOT)
    (archive,) = WORK.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(WORK, filter="data")
    DIST.mkdir(exist_ok=True)
    shutil.copy2(archive, DIST)
    return WORK / archive.name.removesuffix(".tar.gz")


def compiler(processor: str, library: str) -> str:
    """Returns what CXX has to be to compile for a processor and a C library."""
    return f"{Path(sys.executable).parent / 'python-zig'} c++ -target {processor}-linux-{library}"


def build(source: Path, processor: str) -> Path:
    """Builds one wheel, states what it needs in its name, and returns it in dist/."""
    own = f"{platform.machine()}-linux-gnu"
    suffix = sysconfig.get_config_var("EXT_SUFFIX").replace(own, f"{processor}-linux-gnu")
    raw = WORK / processor
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", raw, source),
        CXX=compiler(processor, f"gnu.{GLIBC}"),
        # Symbols stay: profilers show the names of kernels. What a debugger reads beside is four fifths of the file.
        LDFLAGS="-Wl,--strip-debug",
        REGKERNELS_REQUIRE_EXTENSION="1",
        # How setuptools is told that it builds for another machine than this one. Not pip, which would install tools for that one:
        # hence no isolation.
        _PYTHON_HOST_PLATFORM=f"linux-{processor}",
        SETUPTOOLS_EXT_SUFFIX=suffix,
    )
    (wheel,) = raw.glob("*.whl")
    # Refuses what a wheel must not need, and finds out the oldest C library by itself.
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", raw / "repaired", wheel)
    (repaired,) = (raw / "repaired").glob("*.whl")
    promised = f"manylinux_{GLIBC.replace('.', '_')}_{processor}"
    if promised not in repaired.name:
        sys.exit(f"the wheel needs more than was promised, {promised}: {repaired.name}")
    return Path(shutil.copy2(repaired, DIST))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make wheel", description=__doc__)
    parser.add_argument("processors", nargs="*", help=f"of {', '.join(PROCESSORS)}; all where none is named")
    processors = parser.parse_args().processors or PROCESSORS
    for processor in processors:
        if processor not in PROCESSORS:
            parser.error(f"no wheels are built for {processor!r}; name one of {', '.join(PROCESSORS)}")
    if sys.platform != "linux" or platform.machine() not in PROCESSORS:
        parser.error(f"wheels are built on Linux, on x86-64 or aarch64, not on {sys.platform}, {platform.machine()}")
    source = sources()
    made = [build(source, processor) for processor in processors]
    for processor, wheel in zip(processors, made, strict=True):
        if processor == platform.machine():
            installed.check(wheel, WORK / "environment")
    bits.compare(source, processors, WORK, compiler)
    print("\n".join(f"{wheel.relative_to(ROOT)}  {wheel.stat().st_size / 1e6:.1f} MB" for wheel in made))


if __name__ == "__main__":
    main()
