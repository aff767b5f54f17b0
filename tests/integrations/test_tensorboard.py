"""TensorBoard: `stats` written during training and read back from the event file."""

from __future__ import annotations

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import regkernels
from regkernels import optim
from tests.integrations import documented
from tests.integrations.problem import loader, loss_of
from tests.support.training import network


def written(directory: str | Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag."""
    events = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_stats_come_back_from_the_file(tmp_path: Path) -> None:
    model = network(torch.float32)
    optimizer = optim.AdamW(regkernels.param_groups(model, l1=0.05), lr=0.02, stats=True)
    expected: dict[str, list[tuple[int, float]]] = {"nonzeros": [], "l1_norm": [], "grad_norm": []}
    with SummaryWriter(tmp_path) as writer:
        for step, batch in enumerate(loader()):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            gradients = torch.cat([param.grad.flatten() for param in model.parameters()]).double()
            optimizer.step()
            matrices = torch.cat([param.detach().flatten() for param in model.parameters() if param.dim() == 2])
            stats = optimizer.stats
            writer.add_scalar("nonzeros", stats.nonzeros[0], step)
            writer.add_scalar("l1_norm", stats.l1_norm[0], step)
            writer.add_scalar("grad_norm", stats.grad_norm, step)
            expected["nonzeros"].append((step, float(matrices.count_nonzero())))
            expected["l1_norm"].append((step, float(matrices.double().abs().sum())))
            expected["grad_norm"].append((step, float(gradients.norm())))
    found = written(tmp_path)
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in values]
        torch.testing.assert_close([v for _, v in found[tag]], [v for _, v in values], rtol=1e-6, atol=0.0)
    assert len({value for _, value in found["nonzeros"]}) > 1


def test_the_documented_example_writes_the_last_state_of_the_weights() -> None:
    names = documented.run("TensorBoard")
    values = written("runs")
    model, optimizer = names["model"], names["optimizer"]
    matrices = [param for param in model.parameters() if param.dim() == 2]
    share = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
    assert abs(values["weights/zeros"][-1][1] - share) < 1e-6 and share > 0
    assert abs(values["gradients/norm"][-1][1] - float(optimizer.stats.grad_norm)) < 1e-6
