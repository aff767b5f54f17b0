"""The kernels behind `attach_prox`: the reference's bits, in every metric, type, size and layout; the reference by definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regkernels import backends, reference
from regkernels.attach.shrinkage import Item, Shrinkage
from regkernels.reference.kinds import MetricKind
from regkernels.table.hyper import Hyper
from tests.support import cases, engine

pytestmark = pytest.mark.interpreted

PER_STEP = Hyper(lr=0.0123, threshold_per_step=0.37, inverse_sqrt_bias2=1.7, eps=1e-3)
ROWS = {
    "threshold": PER_STEP,
    "divisor": PER_STEP._replace(threshold_per_step=0.0, shrink_per_step=0.21),
    "both": PER_STEP._replace(shrink_per_step=0.21),
    "limited": PER_STEP._replace(shrink_per_step=0.21, largest_shrink=0.003),
    "uniform": Hyper(lr=0.0123, threshold=0.0046, shrink_divisor=1.0026),
    "lr 0": PER_STEP._replace(lr=0.0, shrink_per_step=0.21),
    "skip": PER_STEP._replace(skip=1.0),
}
METRICS = list(reference.METRICS)
FEW_SIZES = (0, 1, 7, 1025, cases.CHUNK + 1)


def count(metric: str) -> int:
    return reference.METRICS[metric].operands


def operands_for(weight: Tensor, metric: str, dtype: torch.dtype) -> list[Tensor]:
    return [(0.3 * torch.randn(weight.shape).abs()).to(dtype) for _ in range(count(metric))]


def shrink(
    setting: engine.Setting, metric: str, rows: list[Hyper], work: list[tuple[Tensor, list[Tensor], int]]
) -> None:
    """In place."""
    device = torch.device(setting.device)
    shrinkage = Shrinkage(device)
    items = [Item(weight, {}, (0, i), metric, tuple(operands), row) for i, (weight, operands, row) in enumerate(work)]
    with engine.active(setting):
        shrinkage.load(items)
        backends.backend_for(device).proximal(shrinkage.batch(rows))
        shrinkage.save()


def assert_kernels_agree(metric: str, rows: list[Hyper], work: list[tuple[Tensor, list[Tensor], int]]) -> list[Tensor]:
    expected = [(weight.clone(), operands, row) for weight, operands, row in work]
    shrink(engine.REFERENCE, metric, rows, expected)
    for setting in engine.kernels():
        got = [(weight.clone(), operands, row) for weight, operands, row in work]
        shrink(setting, metric, rows, got)
        for (weight, _, row), (other, _, _) in zip(got, expected, strict=True):
            engine.assert_same_bits(weight, other, f"{setting}, {metric}, {rows[row]}, {tuple(weight.shape)}")
    return [weight for weight, _, _ in expected]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_all_kernels_shrink_alike(metric: str, dtype: torch.dtype) -> None:
    """Many sizes in one call, with rows of their own, and operands in both types that half-precision weights may have."""
    sizes = FEW_SIZES if backends.forced() == "triton" else cases.SIZES
    for operand_dtype in dict.fromkeys([dtype, reference.compute_dtype(dtype)]):
        work = []
        for row, size in itertools.product(range(len(ROWS)), sizes):
            weight = torch.randn(size).mul(0.02).to(dtype)
            work.append((weight, operands_for(weight, metric, operand_dtype), row))
        found = assert_kernels_agree(metric, list(ROWS.values()), work)
        for weight, (before, _, row) in zip(found, work, strict=True):
            unchanged = list(ROWS)[row] in ("lr 0", "skip")
            assert unchanged or before.numel() < 100 or not torch.equal(weight, before)
            assert not unchanged or torch.equal(weight, before)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_all_kernels_agree_on_special_values(metric: str, dtype: torch.dtype) -> None:
    weights, values = cases.special_pairs(dtype, step=1)
    operands = [values.abs(), values.roll(3)][: count(metric)]
    assert_kernels_agree(metric, [ROWS["threshold"], ROWS["both"]], [(weights, operands, row) for row in (0, 1)])


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_any_layout_is_shrunk_where_it_lies(layout: str) -> None:
    """Weights and operands in layouts of their own; what is around them stays."""
    place: Callable[[Tensor], Tensor] = cases.LAYOUTS[layout]
    for shape in cases.SHAPES:
        values = torch.randn(shape)
        plain = operands_for(values, "centered", torch.float32)
        expected = values.clone()
        shrink(engine.REFERENCE, "centered", [ROWS["both"]], [(expected, plain, 0)])
        for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
            for where in ("weight", "operands", "both"):
                weight = place(values) if where != "operands" else values.clone()
                operands = [place(operand) if where != "weight" else operand.clone() for operand in plain]
                around = cases.surroundings(weight)
                shrink(setting, "centered", [ROWS["both"]], [(weight, operands, 0)])
                engine.assert_same_bits(weight, expected, f"{setting}, {where}, {shape}")
                engine.assert_same_bits(cases.surroundings(weight), around, f"around {where}, {shape}")


@pytest.mark.parametrize("operand_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_operands_of_any_type_are_read(dtype: torch.dtype, operand_dtype: torch.dtype) -> None:
    weight = torch.randn(33).to(dtype)
    operands = operands_for(weight, "root", operand_dtype)
    converted = [operand.to(reference.compute_dtype(dtype)) for operand in operands]
    expected = weight.clone()
    reference.proximal_("root", expected, converted, ROWS["both"])
    for setting in (engine.REFERENCE, *engine.kernels(threads=(1,))):
        got = weight.clone()
        shrink(setting, "root", [ROWS["both"]], [(got, operands, 0)])
        engine.assert_same_bits(got, expected, str(setting))


def test_a_plan_follows_memory_that_moves() -> None:
    """Another shape or other strides at the same address, another address, another row: each is noticed."""
    rows = [ROWS["both"], ROWS["threshold"]]
    views: list[tuple[Callable[[Tensor], Tensor], int]] = [
        (lambda b: b.view(4, 6), 0),
        (lambda b: b.view(4, 6)[:2], 0),
        (lambda b: b[:12], 0),
        (lambda b: b[::2], 0),
        (lambda b: b[::2], 1),
        (lambda b: b[12:], 1),
    ]
    for setting in engine.kernels(threads=(1,)):
        buffer, metric = torch.randn(24), torch.rand(24)
        shrinkage = Shrinkage(torch.device("cpu"))
        for view, row in views:
            expected = buffer.clone()
            reference.proximal_("root", view(expected), [view(metric)], rows[row])
            with engine.active(setting):
                shrinkage.load([Item(view(buffer), {}, (0, 0), "root", (view(metric),), row)])
                backends.backend_for(torch.device("cpu")).proximal(shrinkage.batch(rows))
                shrinkage.save()
            engine.assert_same_bits(buffer, expected, str(setting))


def test_each_kernel_has_a_number() -> None:
    kinds = [MetricKind(*names) for names in itertools.product(METRICS, cases.DTYPES, (False, True))]
    assert [kind.number for kind in kinds] == list(range(len(kinds)))
    assert [MetricKind.of(kind.number) for kind in kinds] == kinds


@pytest.mark.parametrize("metric", METRICS)
def test_the_reference_is_the_mathematics(metric: str) -> None:
    """Against the closed forms in float64, without a limit and with one that some elements exceed."""
    weight = torch.randn(1000, dtype=torch.float64) * 0.02
    operands = operands_for(weight, metric, torch.float64)
    if metric == "centered":
        operands[0] = operands[0] + operands[1] ** 2
    s = {
        "constant": lambda: torch.tensor(0.0123, dtype=torch.float64),
        "root": lambda: 0.0123 / (operands[0].sqrt() * 1.7 + 1e-3),
        "centered": lambda: 0.0123 / ((operands[0] - operands[1] ** 2).sqrt() + 1e-3),
        "reciprocal": lambda: 0.0123 / (operands[0] + 1e-3),
        "direct": lambda: operands[0],
    }[metric]()
    expected = weight.sign() * (weight.abs() - 0.37 * s).clamp(min=0) / (1 + 0.21 * s)
    limited = weight - (weight - expected).clamp(-0.003, 0.003)
    for row, right in (("limited", limited), ("both", expected)):
        got = weight.clone()
        reference.proximal_(metric, got, operands, ROWS[row])
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-15)
        assert 0 < int((got == 0).sum()) < 1000
    assert 0 < int((limited != expected).sum()) < 1000


def test_complex_and_shared_weights_are_refused() -> None:
    shared = torch.randn(8)
    shrinkage = Shrinkage(torch.device("cpu"))
    with pytest.raises(ValueError, match="parameter 1 of param group 0 is complex"):
        shrinkage.load([Item(torch.zeros(2, dtype=torch.complex64), {}, (0, 1), "constant", (), 0)])
    with pytest.raises(ValueError, match="share memory"):
        shrinkage.load([Item(view, {}, (0, i), "constant", (), 0) for i, view in enumerate((shared[:5], shared[4:]))])
