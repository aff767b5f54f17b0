"""Runs saved with torch.distributed.checkpoint, and, started as a program, their continuation in another process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as sharded

from regkernels import FlatParameters
from tests.optim.checkpoint.cases import PAIRS, PRECISIONS, Model, ours, snapshot, train

CASES = [
    *((*pair, form, layout) for pair in PAIRS for form, layout in (("nested", "flat"), ("flattened", ""))),
    ("adamw", "float32", "nested", ""),
    ("adamw", "float32", "flattened", "flat"),
]
"""Optimizer, precision, form of the optimizer's state dict, and whether the model is in a `FlatParameters`."""

BEFORE, AFTER = range(9), range(9, 13)


def options(form: str) -> sharded.StateDictOptions:
    return sharded.StateDictOptions(flatten_optimizer_state_dict=form == "flattened")


def make(name: str, precision: str, layout: str) -> tuple[Model, Any]:
    dtype, more = PRECISIONS[precision]
    torch.manual_seed(3)
    model = Model(dtype)
    if layout == "flat":
        FlatParameters(model)
    return model, ours(name, model, **more)


def parts(model: Model, optimizer: Any, form: str) -> dict[str, Any]:
    of_model, of_optimizer = sharded.get_state_dict(model, optimizer, options=options(form))
    return {"model": of_model, "optimizer": of_optimizer}


def put(parts: dict[str, Any], model: Model, optimizer: Any, form: str) -> None:
    sharded.set_state_dict(
        model,
        optimizer,
        model_state_dict=parts["model"],
        optim_state_dict=parts["optimizer"],
        options=options(form),
    )


def result(model: Model, optimizer: Any) -> dict[str, Any]:
    states = [optimizer.state[param] for param in model.parameters()]
    return snapshot({"weights": list(model.parameters()), "states": states})


def save(folder: Path, case: tuple[str, str, str, str]) -> dict[str, Any]:
    """Trains and saves on the way; returns how the run ended."""
    name, precision, form, layout = case
    model, optimizer = make(name, precision, layout)
    train(optimizer, model, BEFORE)
    checkpoint.save(parts(model, optimizer, form), checkpoint_id=folder, no_dist=True)
    train(optimizer, model, AFTER)
    return result(model, optimizer)


def resume(folder: Path, case: tuple[str, str, str, str]) -> dict[str, Any]:
    name, precision, form, layout = case
    model, optimizer = make(name, precision, layout)
    torch.nn.init.zeros_(model.body[0].weight)
    model.zero_grad()  # only where there are no gradients the states are created that are to be filled
    state = parts(model, optimizer, form)
    checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    put(state, model, optimizer, form)
    train(optimizer, model, AFTER)
    return result(model, optimizer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    torch.save([resume(root / str(index), case) for index, case in enumerate(CASES)], root / "results.pt")
