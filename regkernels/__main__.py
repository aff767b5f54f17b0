"""Runs the commands info, demo and bench from the command line: ``python -m regkernels``."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import regkernels


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 1 it could not be done, 2 wrong arguments, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    if options.command == "info":
        _print_info(regkernels.info())
        return 0
    return _bench(options) if options.command == "bench" else _demo(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m regkernels",
        description="Fused regularisation and optimizer kernels for PyTorch.",
        epilog="`python -m regkernels COMMAND --help` explains the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"regkernels {regkernels.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands.add_parser(
        "info",
        help="what this installation runs on: backend, instruction set, threads, versions",
        description="Prints what this installation runs on. Please add it to a bug report.",
        allow_abbrev=False,
    )
    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits, with and without regkernels (about a minute)",
        description="Trains one network on scikit-learn's handwritten digits without a penalty, with the textbook "
        "recipe (a penalty in the loss) and with regkernels, and compares accuracy, exact zeros and speed in a table "
        "and a picture. Nothing is downloaded. It needs: pip install scikit-learn matplotlib rich",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--output",
        type=_png,
        default=Path("regkernels-demo.png"),
        metavar="FILE.png",
        help="where the picture goes (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the first weights, the split and the batches (default: %(default)s)",
    )
    demo.add_argument(
        "--epochs", type=_epochs, metavar="N", help="passes over the images (default: 50; with --quick 3)"
    )
    demo.add_argument(
        "--quick", action="store_true", help="seconds instead of a minute: shows that it works, not what it is good for"
    )
    _add_bench(commands)
    return parser


_EXAMPLES = """\
examples:
  python -m regkernels bench --quick
      Does it work here, and how fast is it roughly?
  python -m regkernels bench
      Everything. Leave the machine alone meanwhile; the record replaces the last one of this machine.
  python -m regkernels bench --list
      What --suite, --shapes and --peers may be, and which peers are missing here.
  python -m regkernels bench --suite optimizer_step,full_step --peers regkernels --device cpu --output before
      One part of it, kept in the folder `before`. Do it again after a change, with --output after, then:
  python -m regkernels bench --compare before/MACHINE/cpu-8-threads.json after/MACHINE/cpu-8-threads.json
      What has become faster or slower.
"""


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure regkernels against other implementations on this machine (in a checkout)",
        description="Measures how long regkernels takes, and others for the same thing: PyTorch's own optimizers, the\n"
        "textbook recipe and whatever else is installed. First on the CPU, then on the GPU if there is one.\n"
        "All take turns on the same data, and whoever computes something else is marked as wrong. Prints a\n"
        "table per case, and keeps a record (JSON) and pictures. Ctrl-C keeps what has been measured.\n"
        "Needs a checkout, and the extra: pip install -e .[bench]",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    part = bench.add_argument_group("what to measure (NAME: several with commas, or the option repeated)")
    part.add_argument("--quick", action="store_true", help="smaller models and fewer rounds, under 2 minutes in all")
    part.add_argument("--suite", action="append", default=[], metavar="NAME", help="only this question")
    part.add_argument("--shapes", action="append", default=[], metavar="NAME", help="only this model")
    part.add_argument(
        "--peers", action="append", default=[], metavar="NAME", help="only this implementation, and the baseline"
    )
    part.add_argument("--device", choices=("cpu", "cuda"), help="only there; cuda is also how PyTorch calls AMD's GPUs")
    part.add_argument(
        "--threads", type=_threads, metavar="N", help="on the CPU, for everyone (default: as PyTorch has it)"
    )
    kept = bench.add_argument_group("what to keep")
    kept.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where records and pictures go, in a folder per machine (default: the checkout's benchmarks/results; "
        "benchmarks/scratch where only a part is measured, as it must not replace the record of the whole)",
    )
    kept.add_argument("--no-pictures", action="store_true", help="the record alone")
    instead = bench.add_argument_group("instead of measuring")
    other = instead.add_mutually_exclusive_group()
    other.add_argument("--list", action="store_true", help="list suites, shapes, and peers with versions")
    other.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="what is faster or slower in record B than in record A; the exit status is 1 where regkernels has become "
        "slower by more than 10 %%, 2 where the two cannot be compared",
    )
    instead.add_argument(
        "--force", action="store_true", help="compare even if machines, devices or numbers of threads differ"
    )
    other.add_argument(
        "--readme",
        action="store_true",
        help="rewrite the speed tables of README.md and of the benchmarks' page from committed records",
    )
    other.add_argument(
        "--projection",
        action="store_true",
        help="what models of 1 B to 1 T weights would take on 8 to 16384 GPUs: memory, messages, and time by the committed "
        "record's measured rates",
    )
    instead.add_argument(
        "--bandwidth",
        type=_bandwidth,
        metavar="GB/s",
        help="for --projection: of your device, in place of the record's",
    )
    instead.add_argument("--markdown", action="store_true", help="for --projection: as the documentation has it")


def _threads(text: str) -> int:
    return _whole_number(text, 1, 4096)


def _bandwidth(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be greater than 0 and finite, got {text}")
    return number


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be from {least} to {most}, got {number}")
    return number


def _epochs(text: str) -> int:
    return _whole_number(text, 1, 10_000)


def _seed(text: str) -> int:
    return _whole_number(text, 0, 2**32 - 1)  # what NumPy takes


def _png(text: str) -> Path:
    """Refuses here, not after a minute of training, what cannot become the picture."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path


def _print_info(info: Mapping[str, Any]) -> None:
    rows = {key.replace("_", " "): _readable(value) for key, value in info.items()}
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            table.add_column(style="bold cyan", no_wrap=True)
            for key, text in rows.items():
                table.add_row(Text(key), Text(text))
            Console().print(table)
            return
    # Also for a file or a pipe, where rich would break long values at 80 columns.
    width = max(map(len, rows))
    for key, text in rows.items():
        print(f"{key:<{width}}  {text}")


def _readable(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _demo(options: argparse.Namespace) -> int:
    from regkernels import demo

    missing = demo.missing_packages()
    if missing:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
        print(
            f"The demo needs packages that could not be imported:{listed}\nTo install them: pip install scikit-learn matplotlib rich",
            file=sys.stderr,
        )
        return 1
    return _exit_code(lambda: demo.run(options.output, seed=options.seed, epochs=options.epochs, quick=options.quick))


def _bench(options: argparse.Namespace) -> int:
    """Runs the suite of this checkout: it is no part of the installed package, and a package `benchmarks` somewhere on the path may be anyone's."""
    checkout = Path(regkernels.__file__).parents[1]
    if not (checkout / "benchmarks" / "command.py").is_file():
        print(
            "The benchmarks are not part of the installed package, they are in its source repository. To run them:\n"
            "  git clone THE-REPOSITORY regkernels\n"
            "  cd regkernels\n"
            "  make bench        (or: pip install -e .[bench], then: python -m regkernels bench)",
            file=sys.stderr,
        )
        return 1
    if sys.path[0] != str(checkout):
        sys.path.insert(0, str(checkout))
    # pip has a copy of rich, which does where nothing can be installed.
    needed = {"rich": "benchmarks.printing", **({} if options.no_pictures else {"matplotlib": "matplotlib"})}
    for package, module in needed.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(
                f"The benchmarks need {package}, which could not be imported: {error}\n"
                "To install what they need: pip install -e .[bench]",
                file=sys.stderr,
            )
            return 1
    command = importlib.import_module("benchmarks.command")
    return _exit_code(lambda: command.run(options))


def _exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command and says what has ended it."""
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # the picture or the record could not be written
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
