"""Tells about a training of gpt.py: a table, TensorBoard's log, and in the end what the zeros save."""

from __future__ import annotations

import sys

from gpt_model import GPT

from regkernels.optim import Stats

_COLUMNS = {  # how their values are written
    "step": ",",
    "loss": ".3f",
    "validation": ".3f",
    "zeros": ".1%",
    "grad norm": ".2f",
    "lr": ".1e",
    "bytes/s": ",.0f",
    "min left": ".1f",
}


class Log:
    """Writes a table in the terminal and, where asked for, TensorBoard's log in ``folder``.

    There, what an interrupted run has logged for ``step`` and later is hidden.
    """

    def __init__(self, folder: str, step: int, *, tensorboard: bool) -> None:
        self.writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                sys.exit("error: --tensorboard needs TensorBoard: pip install tensorboard")
            self.writer = SummaryWriter(folder, purge_step=step)

    def header(self) -> None:
        print("loss and validation: nats per byte; zeros: share of the MLPs' weights that are exactly 0\n")
        print("  ".join(f"{name:>7}" for name in _COLUMNS), flush=True)

    def row(self, values: dict[str, float], stats: Stats) -> None:
        """Writes ``values`` by column, "step" among them; ``stats``: of the groups MLPs, other matrices, norms."""
        print("  ".join(f"{values[name]:{max(7, len(name))}{form}}" for name, form in _COLUMNS.items()), flush=True)
        if self.writer is not None:
            step = int(values["step"])
            for name in ("loss", "validation", "zeros", "grad norm", "lr", "bytes/s"):
                self.writer.add_scalar(name, values[name], step)
            for name in ("l1_norm", "squared_norm", "nonzeros"):
                for group, value in zip(("mlps", "matrices", "norms"), getattr(stats, name).tolist(), strict=True):
                    self.writer.add_scalar(f"{name}/{group}", value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def report_savings(model: GPT) -> None:
    """Prints what can be left out of the model without changing what it computes."""
    mlps, itemsize = [block.mlp for block in model.blocks], model.embedding.weight.itemsize
    total = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() for mlp in mlps for p in mlp.parameters())
    zeros = sum(int((p == 0).sum()) for mlp in mlps for p in mlp.parameters())
    units = sum(mlp[0].out_features for mlp in mlps)
    # Nothing enters such a unit, and GELU(0) = 0, or nothing leaves it.
    idle = sum(int(((mlp[0].weight == 0).all(1) | (mlp[2].weight == 0).all(0)).sum()) for mlp in mlps)
    dense, packed = total * itemsize, (total - zeros) * itemsize + weights // 8
    print("\nWhat the zeros save")
    print(f"  weights: {zeros:,} of the {weights:,} in MLPs are exactly zero ({zeros / weights:.1%})")
    print(f"  units:   {idle:,} of the {units:,} hidden units can be deleted: nothing comes in, or nothing goes out")
    print(
        f"  storage: {packed / 1000:,.0f} kB instead of {dense / 1000:,.0f} kB for the whole model (in MLPs one bit per weight,"
    )
    print("           which says whether it is zero, and the values of those that are not)")
