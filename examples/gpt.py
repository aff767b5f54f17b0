"""Trains a small GPT, with sparse MLPs, on text that every machine has: the source code of Python's standard library."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from gpt_model import GPT
from gpt_options import parse_arguments, settings_of
from gpt_ranks import Ranks, joined, spread_state, whole
from gpt_report import Log, report_savings
from torch import Tensor

import regkernels as rk


def read_windows(folder: str, context: int) -> tuple[Tensor, Tensor, str]:
    """Reads windows of context + 1 bytes in the .py files below ``folder``: all to learn, 512 to validate; and a fingerprint.

    Every 20th file is kept for validation. Tests and tables of characters are left out.
    """
    skipped, texts = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "encodings", "pydoc_data"}, []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - skipped)
        texts += [Path(place, name).read_bytes() for name in sorted(files) if name.endswith(".py")]
    both = b"".join(text for i, text in enumerate(texts) if i % 20), b"".join(texts[::20])
    if min(map(len, both)) <= context:
        sys.exit(
            f"error: too little Python source in {folder}: {len(both[0]):,} bytes, and {len(both[1]):,} to validate"
        )
    windows, held_out = (
        torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, context + 1, 1) for text in both
    )
    return windows, held_out[:: len(held_out) // 512 + 1], hashlib.sha256(b"".join(both)).hexdigest()


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Returns that of step 1, 2, ...: rises linearly for ``args.warmup`` steps, then falls to a tenth along a cosine."""
    if step < args.warmup:
        return args.lr * step / args.warmup
    return args.lr * (0.55 + 0.45 * math.cos(math.pi * (step - args.warmup) / (args.steps - args.warmup)))


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes beside ``path``, then renames: whatever fails in between, there is one whole checkpoint."""
    with open(path.with_suffix(".tmp"), "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def make_optimizer(model: GPT, args: argparse.Namespace) -> rk.optim.AdamW:
    """Makes an optimizer: the matrices of the MLPs are under L1 and decay, the other matrices decay, norms are left alone."""
    named = dict(model.named_parameters())
    mlps = [p for name, p in named.items() if ".mlp." in name]
    matrices = [p for name, p in named.items() if ".mlp." not in name and p.dim() == 2]
    norms = [p for p in named.values() if p.dim() == 1]
    return rk.optim.AdamW(
        [{"params": mlps, "l1": args.l1}, {"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.99),
        weight_decay=args.weight_decay,
        weight_decay_mode="prox",  # which together with L1 is an elastic net
        max_grad_norm=args.max_grad_norm,
        stats=True,
        param_rounding="remainder",  # keeps what bfloat16 cuts off; float32 weights have nothing to keep
    )


def stop_requests() -> list[int]:
    """Returns a list that gets the number of the signal when somebody asks the program to stop: Ctrl-C, or a cluster."""
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return requests


def make_model(args: argparse.Namespace) -> GPT:
    model = GPT(args.layers, args.width, args.heads, args.context, args.dropout)
    return model.to(getattr(torch, args.dtype))


def random_state(device: torch.device) -> list[Tensor]:
    """Returns the state of the generators that this process draws its dropout from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def train(args: argparse.Namespace, checkpoint: dict[str, Any] | None, ranks: Ranks) -> dict[str, Tensor]:
    """Trains, and returns the weights, on every rank all of them."""
    torch.manual_seed(args.seed)
    windows, held_out, fingerprint = read_windows(args.text, args.context)
    order = torch.Generator().manual_seed(args.seed)  # of the batches, which all ranks draw
    try:
        model = make_model(args).to(ranks.device)
        if checkpoint is not None:
            model.load_state_dict(checkpoint["model"])
        network = ranks.spread(model)
        optimizer = make_optimizer(model, args)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    if ranks.rank > 0:
        torch.manual_seed(args.seed + ranks.rank)  # the weights are there; dropout differs from rank to rank
    first = 1
    if checkpoint is not None:
        if checkpoint["text"] != fingerprint:
            sys.exit(f"error: the text in {args.text} is no longer the one that the checkpoint was trained on")
        first = checkpoint["step"] + 1
        optimizer.load_state_dict(spread_state(checkpoint["optimizer"], optimizer))
        order.set_state(checkpoint["order"])
        if ranks.rank < len(checkpoint["random"]):
            set_random_state(checkpoint["random"][ranks.rank], ranks.device)
    log = Log(args.out, first, tensorboard=args.tensorboard and ranks.rank == 0)
    path = Path(args.out, "checkpoint.pt")
    path.parent.mkdir(parents=True, exist_ok=True)

    under_l1 = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    weights = sum(p.numel() for p in model.parameters())
    print(f"text:    {len(windows):,} bytes of Python from {args.text}, and every 20th file for validation")
    print(f"model:   {weights:,} weights in {args.dtype} on {ranks}, {under_l1:,} of them in MLPs, under L1")
    log.header()
    stop = stop_requests()
    loss_sum, before, clock = torch.zeros((), device=ranks.device), first - 1, time.perf_counter()
    for step in range(first, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        # A network that is pulled to zero before it has learnt anything may stay there: L1 grows with time.
        optimizer.param_groups[0]["l1"] = args.l1 * min(1.0, 2 * step / args.steps)
        batch = torch.randint(len(windows), (args.batch_size,), generator=order)
        loss = model.loss(windows[ranks.part(batch)], network)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach()
        stopped_by = ranks.largest(stop[0] if stop else 0)
        last = step == args.steps or stopped_by > 0
        if step % args.log_every == 0 or last:
            values = {
                "step": step,
                "loss": ranks.total(loss_sum).item() / ranks.count / (step - before),
            }  # waits for a GPU; then the time is right
            seconds = (time.perf_counter() - clock) / (step - before)
            values["validation"] = model.validate(held_out, args.batch_size, ranks.part, ranks.total)
            values["zeros"] = 1 - optimizer.stats.nonzeros[0].item() / under_l1
            values["grad norm"] = optimizer.stats.grad_norm.item()
            values["lr"] = optimizer.param_groups[0]["lr"]
            values["bytes/s"] = args.batch_size * args.context / seconds
            values["min left"] = (args.steps - step) * seconds / 60
            log.row(values, optimizer.stats)
            loss_sum, before, clock = torch.zeros_like(loss_sum), step, time.perf_counter()
        if step % args.save_every == 0 or last:
            state = {"step": step, "settings": settings_of(args), "text": fingerprint, "order": order.get_state()}
            state |= {"random": ranks.gather(random_state(ranks.device))}
            state |= {"model": whole(model.state_dict()), "optimizer": whole(optimizer.state_dict())}
            if ranks.rank == 0:
                save(path, state)
        if stopped_by and step < args.steps:
            print(f"\nStopped after step {step}, which is saved in {path}. Go on with --resume --out {args.out}")
            sys.exit(128 + stopped_by)
    log.close()
    return whole(model.state_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    args, checkpoint = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    with joined(args.device, args.batch_size, fsdp=args.fsdp) as ranks:
        weights = train(args, checkpoint, ranks)
    if ranks.rank == 0:
        model = make_model(args).to(ranks.device)
        model.load_state_dict(weights)
        if args.l1 > 0:
            report_savings(model)
        print("\nWhat it writes after 'def ':\n\n" + model.sample("def ", 400))


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # moments of weights without gradient become tiny numbers, slow on some processors
    main()
