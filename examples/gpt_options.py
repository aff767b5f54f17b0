"""Parses the command line of gpt.py: its options, and what may not change when a run is resumed."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# All other options decide about the bits of the weights.
_NO_SETTINGS = ("out", "resume", "tensorboard", "device", "fsdp")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number greater than 0, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """Takes any number. Whether it may be 0 or negative is for those to say who use it: PyTorch's layers and the optimizer."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a small GPT on the source code of Python's standard library. L1 makes weights of its MLPs "
        "exactly zero. Stop it with Ctrl-C, go on with --resume: the weights at the end have the same bits.",
        allow_abbrev=False,
    )
    add, shown = parser.add_argument, " (default: %(default)s)"
    add("--out", default="gpt-run", metavar="FOLDER", help="where checkpoint.pt and TensorBoard's log go" + shown)
    add("--resume", action="store_true", help="go on from the checkpoint in --out, with the settings that are in it")
    add("--tensorboard", action="store_true", help="log for TensorBoard (pip install tensorboard)")
    add("--fsdp", action="store_true", help="under torchrun: each process holds a part of each weight, not all of it")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..." + shown)
    settings = parser.add_argument_group("settings")
    add = settings.add_argument
    add("--text", default=sysconfig.get_path("stdlib"), metavar="FOLDER", help="its .py files are the text" + shown)
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of weights and activations" + shown)
    for name, default, kind, text in (
        ("layers", 4, positive, "blocks of attention and MLP"),
        ("width", 128, positive, "size of the vector that stands for a byte"),
        ("heads", 2, positive, "attention heads per block"),
        ("context", 64, positive, "bytes that the model looks back on"),
        ("dropout", 0.0, number, "share of a block's output that is dropped in training"),
        ("steps", 3000, positive, "optimizer steps"),
        ("batch-size", 16, positive, "windows of text per step"),
        ("lr", 2e-3, number, "highest learning rate"),
        ("warmup", 100, positive, "steps to get there; then it falls to a tenth along a cosine"),
        ("l1", 2e-6, number, "L1 on the matrices of the MLPs, reached at half time; 0 for none"),
        ("weight-decay", 0.01, number, "decay of all matrices, with PyTorch's factor 1/2"),
        ("max-grad-norm", 1.0, number, "gradients with a larger norm are scaled down to it"),
        ("log-every", 200, positive, "steps from one line of the table to the next"),
        ("save-every", 500, positive, "steps from one checkpoint to the next"),
        ("threads", 1, positive, "CPU threads; more are for larger models, and for CPUs without other work"),
        ("seed", 1, positive, "of first weights, batches and dropout"),
    ):
        metavar = "N" if kind is positive else "X"
        add(f"--{name}", type=kind, default=default, metavar=metavar, help=text + shown)
    return parser


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what decides about the bits of the weights, as it goes into a checkpoint."""
    return {name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Returns the options and, with --resume, the checkpoint, whose settings they then are."""
    parser = make_parser()
    args, checkpoint = parser.parse_args(arguments), None
    path = Path(args.out, "checkpoint.pt")
    if args.resume:
        if not path.exists():
            parser.error(f"nothing to resume: there is no {path}")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            parser.set_defaults(**checkpoint["settings"])
        except Exception as error:
            parser.error(f"{path} is no checkpoint of this program: {error}")
        args = parser.parse_args(arguments)
        for name, value in checkpoint["settings"].items():
            if getattr(args, name) != value:
                parser.error(f"--{name.replace('_', '-')} is {value} in {path} and cannot change now: leave it out")
    elif path.exists():
        parser.error(f"{path} exists: go on with --resume, or choose another folder with --out")
    if args.width % args.heads:
        parser.error(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.warmup >= args.steps:
        parser.error(f"--warmup {args.warmup} is not less than --steps {args.steps}")
    return args, checkpoint
