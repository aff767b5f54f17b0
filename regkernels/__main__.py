"""The command line: ``python -m regkernels info`` and ``python -m regkernels demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
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
    return _demo(options)


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
        "and a picture. Nothing is downloaded. Needs the extra: pip install regkernels[demo]",
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
    return parser


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
    """Refused here, not after a minute of training."""
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
            f"The demo needs packages that could not be imported:{listed}\nTo install them: pip install regkernels[demo]",
            file=sys.stderr,
        )
        return 1
    try:
        demo.run(options.output, seed=options.seed, epochs=options.epochs, quick=options.quick)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # the picture could not be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
