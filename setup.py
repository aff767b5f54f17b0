"""Builds `regkernels._C` with CMake and Ninja; everything else about the package is in pyproject.toml.

The extension is an accelerator: without it the eager reference does the same work. So a machine without a
compiler still gets a working install, and the reason is kept in `regkernels/_build_failure.txt`, because pip
hides what a successful build printed. Set REGKERNELS_REQUIRE_EXTENSION=1 to make such a failure an error.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
FAILURE_NOTE = "_build_failure.txt"


class BuildFailure(Exception):
    """The extension could not be built; the message says why, for the person who installs."""


def required() -> bool:
    return os.environ.get("REGKERNELS_REQUIRE_EXTENSION", "").lower() not in ("", "0", "false", "no", "off")


def find_tool(name: str, directory: str) -> str:
    """The program of the PyPI package `name`, else the one on PATH.

    The package comes first: its version is the one that was asked for, and in an environment that is not
    activated it is not on PATH while an older system copy may be.
    """
    try:
        package = __import__(name)
    except ImportError:
        package = None
    candidate = getattr(package, directory, None)
    tool = (candidate and shutil.which(name, path=str(candidate))) or shutil.which(name)
    if tool is None:
        raise BuildFailure(f"{name} was found neither as a Python package nor on PATH (pip install {name})")
    return tool


def essence(output: str, limit: int = 20) -> str:
    """What to show of a failed tool's output: from its first error on, else its end."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line, re.IGNORECASE)), None)
    return "\n".join(lines[-limit:] if first is None else lines[first : first + limit])


def run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildFailure(f"{command[0]} could not be run: {error}") from error
    print(result.stdout, end="", flush=True)  # pip shows it with -v
    if result.returncode != 0:
        raise BuildFailure(f"{Path(command[0]).name} failed:\n{essence(result.stdout)}")


def build_with_cmake() -> Path:
    """Configures and builds; returns the shared library."""
    cmake = find_tool("cmake", "CMAKE_BIN_DIR")
    ninja = find_tool("ninja", "BIN_DIR")
    try:
        import pybind11
    except ImportError as error:
        raise BuildFailure("pybind11 is not installed (pip install pybind11)") from error

    configure = [
        cmake,
        f"-S{ROOT}",
        "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    # Each interpreter has its own build directory. Within it CMake remembers the tools and flags of its first
    # run and ignores later changes, and pip's isolated environments move the tools on every build: so the
    # directory is used again only while everything that went into it is the same.
    interpreter = zlib.crc32(os.fsencode(sys.executable))
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{interpreter:08x}"
    environment = (
        "CXX",
        "CXXFLAGS",
        "LDFLAGS",
        "CMAKE_TOOLCHAIN_FILE",
        "ARCHFLAGS",
        "MACOSX_DEPLOYMENT_TARGET",
    )
    key = "\n".join([*configure, pybind11.__version__, platform.python_version(), platform.machine()])
    key += "".join(f"\n{name}={os.environ.get(name, '')}" for name in environment)
    stamp = build / "configured-with.txt"
    if not stamp.is_file() or stamp.read_text() != key:
        shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)
    if stamp.is_file():
        stamp.unlink()  # a configure step that fails must not leave a directory that looks usable
    run([*configure, f"-B{build}"])
    stamp.write_text(key)
    run([cmake, "--build", str(build)])

    libraries = [path for path in (build / "lib").glob("_C*") if path.suffix in (".so", ".pyd")]
    if len(libraries) != 1:
        raise BuildFailure(f"expected one library in {build / 'lib'}, found {[path.name for path in libraries]}")
    return libraries[0]


def explanation(reason: str) -> str:
    return "\n".join(
        [
            "regkernels: the C++ extension was not built; the eager PyTorch reference is used on the CPU.",
            "It computes the same numbers, more slowly. Why it was not built:",
            "",
            *("    " + line for line in reason.splitlines()),
            "",
            "How to fix it: install a C++17 compiler (GCC or clang) and the headers of this Python (Debian,",
            "Ubuntu: apt install g++ python3-dev; Fedora: dnf install gcc-c++ python3-devel), and retry:",
            "    pip install --force-reinstall --no-deps --no-cache-dir regkernels   (or a checkout's path)",
            "REGKERNELS_REQUIRE_EXTENSION=1 in the environment makes a failure like this one an error.",
        ]
    )


class CMakeBuild(build_ext):
    """Hands the compiling to CMake and puts the result where setuptools wants it (wheel or sources)."""

    def run(self) -> None:
        extension = self.extensions[0]
        target = Path(self.build_lib, self.get_ext_filename(extension.name))
        places = [target]
        if self.inplace:
            build_py = self.get_finalized_command("build_py")
            places.append(Path(build_py.get_package_dir("regkernels"), target.name))
        # Whatever an earlier build left would be taken for the result of this one.
        for place in places:
            place.unlink(missing_ok=True)
            place.with_name(FAILURE_NOTE).unlink(missing_ok=True)
        try:
            library = build_with_cmake()
        except BuildFailure as failure:
            text = explanation(str(failure))
            if required():
                message = f"REGKERNELS_REQUIRE_EXTENSION is set and the extension was not built.\n{failure}"
                raise CompileError(message) from None
            rule = "*" * 100
            print(f"\n{rule}\n{text}\n{rule}\n", file=sys.stderr, flush=True)
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.with_name(FAILURE_NOTE).write_text(text + "\n")
            # The distribution keeps its extension, so the wheel keeps its platform tag: a wheel without the
            # extension must not pass for one that fits every platform.
            self.extensions = []
            return
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, place)


setup(ext_modules=[Extension("regkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
