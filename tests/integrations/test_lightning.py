"""PyTorch Lightning: automatic and manual optimization, clipping, precision, checkpoints."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from regkernels import FlatParameters, optim
from tests.integrations.problem import FORMATS, REGULARISED, loader, loss_of, plain_loop, zeros
from tests.support.training import (
    assert_equal,
    assert_near,
    each_optimizer,
    has_momentum,
    network,
    ours,
    theirs,
    twins,
    within,
)


class Regression(lightning.LightningModule):
    """``make``: (name, parameters) -> optimizer; ``schedule``: optimizer -> scheduler, stepped with every batch."""

    def __init__(self, net: nn.Module, make: Any, schedule: Any = None) -> None:
        super().__init__()
        self.net, self.make, self.schedule = net, make, schedule

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.net.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def trainer(**options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet, **options}
    )


def regularised(name: str) -> Any:
    return lambda params: ours(name, params, **REGULARISED)


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=6, cycle_momentum=has_momentum(optimizer)
    )


@each_optimizer
def test_clipping_accumulation_and_schedule(name: str) -> None:
    net, other = twins(network(torch.float32))
    fit = trainer(gradient_clip_val=0.1, accumulate_grad_batches=2)
    fit.fit(Regression(net, regularised(name), one_cycle), loader())
    optimizer = regularised(name)(other.parameters())
    plain_loop(other, optimizer, loader(), accumulate=2, clip=0.1, after=one_cycle(optimizer).step)
    assert_equal(net, other)
    assert zeros(net) > 0


@each_optimizer
def test_torch_optim_without_regularisation(name: str) -> None:
    net, other = twins(network())
    for make, model in ((ours, net), (theirs, other)):
        module = Regression(model, lambda params, make=make: make(name, params))
        trainer(precision="64-true", gradient_clip_val=0.1).fit(module, loader(torch.float64))
    assert_near(net, other)


class Manual(Regression):
    """A step with every third batch, through what `LightningModule.optimizers` hands out."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, index) / 3)
        if (index + 1) % 3 == 0:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


@each_optimizer
def test_manual_optimization(name: str) -> None:
    net, other = twins(network(torch.float32))
    module = Manual(net, regularised(name))
    module.automatic_optimization = False
    trainer().fit(module, loader())
    plain_loop(other, regularised(name)(other.parameters()), loader(), accumulate=3, clip=0.1)
    assert_equal(net, other)


class Closures(Manual):
    """Steps with a closure, as for optimizers that evaluate the loss themselves."""

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(self.net, batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


def test_manual_optimization_with_closures() -> None:
    net, other = twins(network(torch.float32))
    module = Closures(net, regularised("adamw"))
    module.automatic_optimization = False
    trainer().fit(module, loader())
    plain_loop(other, regularised("adamw")(other.parameters()), loader())
    assert_equal(net, other)


PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}


@pytest.mark.parametrize(
    ("precision", "param_rounding"),
    [("bf16-mixed", "nearest"), *((PRECISIONS[dtype], rounding) for dtype, rounding in FORMATS)],
)
@each_optimizer
def test_resumed_from_a_checkpoint(name: str, precision: Any, param_rounding: str) -> None:
    """The weights are those of a run that was not interrupted; states of bfloat16 weights stay as they are."""

    def make(params: Any) -> optim.Optimizer:
        return ours(name, params, **REGULARISED, param_rounding=param_rounding, seed=5)

    straight, interrupted = twins(network(torch.float32))
    resumed = network(torch.float32)
    trainer(precision=precision, max_epochs=2).fit(Regression(straight, make), loader())
    first, second = trainer(precision=precision), trainer(precision=precision, max_epochs=2)
    first.fit(Regression(interrupted, make), loader())
    first.save_checkpoint("first.ckpt")
    second.fit(Regression(resumed, make), loader(), ckpt_path="first.ckpt")
    assert second.global_step == 24
    assert_equal(straight, resumed)
    for state in second.optimizers[0].state.values():
        kinds = {key: tensor.dtype for key, tensor in state.items()}
        assert kinds.pop("remainder", torch.int16) == torch.int16
        assert kinds.pop("step", torch.float64) in (torch.float32, torch.float64) and set(kinds.values()) <= {
            torch.float32
        }


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_flat_parameters(precision: Any) -> None:
    """Lightning converts the weights before it asks for the optimizer."""
    net, other = twins(network(torch.float32))
    flats = []

    def flat(params: Any) -> optim.Optimizer:
        flats.append(FlatParameters(params))
        return regularised("adamw")(params)

    for make, model in ((lambda params: flat(list(params)), net), (regularised("adamw"), other)):
        trainer(precision=precision, gradient_clip_val=0.1).fit(Regression(model, make), loader())
    assert_equal(net, other)
    assert all(within(param, flats[0].weights) and within(param.grad, flats[0].gradients) for param in net.parameters())


def test_scaler_and_clipping() -> None:
    """16-mixed: unscaled and clipped by Lightning, and a step whose gradients are infinite is skipped."""
    net, other = twins(network(torch.float32))
    scale = {"init_scale": 2.0**12, "growth_interval": 3}
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scale))
    fit = trainer(plugins=[plugin], gradient_clip_val=0.1)
    fit.fit(Regression(net, regularised("adamw")), loader())
    optimizer, scaler = regularised("adamw")(other.parameters()), torch.amp.GradScaler("cpu", **scale)
    for batch in loader():
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(other, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert_equal(net, other)


def test_what_unscales_within_its_step_is_not_clipped_by_lightning() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fit = trainer(plugins=[plugin], gradient_clip_val=0.1)
    module = Regression(network(torch.float32), lambda params: optim.AdamW(params, amp_scaling=True))
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit.fit(module, loader())


@each_optimizer
def test_unscaled_and_clipped_within_the_step(name: str) -> None:
    """What ``amp_scaling`` and ``max_grad_norm`` do instead. The first scale is too large and costs a step."""
    inside, outside = twins(network(torch.float32))
    scale = {"init_scale": 2.0**24, "growth_interval": 5}
    for net, clip, options in ((inside, None, {"amp_scaling": True, "max_grad_norm": 0.1}), (outside, 0.1, {})):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scale))
        module = Regression(net, lambda params, more=options: ours(name, params, **REGULARISED, **more))
        trainer(plugins=[plugin], gradient_clip_val=clip).fit(module, loader())
        assert plugin.scaler.get_scale() < 2.0**24
    assert_near(inside, outside, 1e-5)


class Logging(Regression):
    """Reads `stats` through Lightning's wrapper."""

    def on_train_batch_end(self, *_: Any) -> None:
        stats = self.optimizers().stats
        self.trainer.seen = getattr(self.trainer, "seen", [])
        self.trainer.seen.append((int(stats.nonzeros), sum(int(p.count_nonzero()) for p in self.net.parameters())))


def test_stats_through_the_wrapper() -> None:
    module = Logging(network(torch.float32), lambda params: optim.AdamW(params, lr=0.02, **REGULARISED, stats=True))
    fit = trainer()
    fit.fit(module, loader())
    assert len(fit.seen) == 12 and len({said for said, _ in fit.seen}) > 1
    assert all(said == counted for said, counted in fit.seen)
