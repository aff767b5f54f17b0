"""The benchmarks' cases, all of them, with shapes exchanged for tiny ones: what they are made of works and can be timed."""

from __future__ import annotations

import importlib
import subprocess
from types import ModuleType

import pytest
import torch

from benchmarks import bench_stacked, building, peak, shapes
from benchmarks.case import Case, Contender, Scope
from benchmarks.measure import Plan, measure
from benchmarks.peers import Task, Unsupported
from benchmarks.suites import SUITES

STREAMS = {"update": 1.0, "read": 1.0, "copy": 1.0}
PUBLISHED = {  # tensors and elements
    "resnet50": (161, 25_557_032),
    "vit-b": (152, 86_567_656),
    "gpt2-small": (148, 124_439_808),
    "gpt2-medium": (292, 354_823_168),
    "llama-1b": (146, 1_235_814_400),
    "nanogpt": (39, 10_646_784 + 256 * 384),  # its log leaves out the embedding of positions
}
SLOW_TO_START = ("compiled", "DeepSpeed")  # they call a compiler


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "LISTS", dict.fromkeys(shapes.LISTS, lambda: [(3, 4), (5,)]))
    monkeypatch.setattr(shapes, "equal", lambda count, elements: min(count, 3) * [(min(elements, 10),)])
    monkeypatch.setattr(bench_stacked, "ROWS", 50)
    monkeypatch.setattr(bench_stacked, "EPOCHS", 1)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: None)


def suite(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.bench_{name}")


def contenders(case: Case) -> dict[str, Contender]:
    made = {}
    for name, make in case.contenders.items():
        if not any(word in name for word in SLOW_TO_START):
            try:
                made[name] = make()
            except (Unsupported, ImportError):
                assert not name.startswith(building.OURS), "ours takes part in everything"
    return made


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SUITES)
def test_every_case_can_be_timed(name: str, quick: bool, tiny: None) -> None:
    seen = set()
    for case in suite(name).cases(Scope(quick=quick)):
        made = contenders(case)
        rows = measure(case, made, STREAMS, Plan(1e-9, least=1, burst=2))
        assert [row.peer for row in rows] == list(made)
        assert case.suite == name and case.name not in seen
        assert all(row.ms > 0 for row in rows)
        assert any(peer.startswith(building.OURS) for peer in made)
        seen.add(case.name)
    assert seen


@pytest.mark.parametrize("name", SUITES)
def test_a_gpu_has_cases_too(name: str, tiny: None) -> None:
    """Made, but not run."""
    assert list(suite(name).cases(Scope("cuda"))) or name in ("paths", "threads", "sharded")


@pytest.mark.parametrize("name", SUITES)
def test_who_and_which_shapes_can_be_chosen(name: str, tiny: None) -> None:
    for case in suite(name).cases(Scope(shapes=("1000x1000",), peers=(building.OURS,))):
        assert case.shapes in ("1000x1000", "")
        assert 1 <= len(case.contenders) <= 2 and building.OURS in case.contenders


def test_threads_are_set_back(tiny: None) -> None:
    before = torch.get_num_threads()
    during = []
    contender = suite("threads").with_threads(1, before, Contender(lambda: during.append(torch.get_num_threads())))
    assert contender.prepare is not None
    contender.prepare()
    contender.run()
    assert during == [1] and torch.get_num_threads() == before


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (3, [1, 2, 3]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16])])
def test_threads_that_are_tried(most: int, counts: list[int]) -> None:
    assert suite("threads").counts(most) == counts


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_those_of_the_models(name: str) -> None:
    of = shapes.LISTS[name]()
    assert (len(of), shapes.elements(of)) == PUBLISHED[name]


@pytest.mark.parametrize(("number", "text"), [(64, "64"), (1000, "1 k"), (124_439_808, "124 M"), (1.2358e9, "1.24 G")])
def test_numbers_are_short(number: float, text: str) -> None:
    assert shapes.short(number) == text


@pytest.mark.parametrize(
    ("peer", "task", "dtype", "width"),
    [
        ("torch fused", Task("sgd"), torch.float32, 12),
        ("torch fused", Task("momentum"), torch.float32, 20),
        ("regkernels", Task("adamw"), torch.float32, 28),
        ("regkernels", Task("adamw", max_grad_norm=1.0), torch.float32, 32),
        ("regkernels", Task("adamw"), torch.float64, 56),
        ("torch fused", Task("adamw"), torch.bfloat16, 14),
        ("regkernels, FlatParameters", Task("adamw"), torch.bfloat16, 22),
        ("optimi", Task("sgd"), torch.bfloat16, 10),
    ],
)
def test_bytes_that_have_to_be_moved(peer: str, task: Task, dtype: torch.dtype, width: int) -> None:
    states = building.bytes_of_states(peer, task, dtype)
    assert building.bytes_of_step(task, 1000, dtype, states) == 1000 * width


def test_the_peak_of_a_step_is_seen() -> None:
    size = 1 << 26

    def run() -> None:
        torch.ones(size, dtype=torch.uint8)

    run()
    try:
        found = peak.of(run, "cpu")
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert 0.95 * size < found < 1.2 * size
    assert peak.of(lambda: None, "cpu") < 0.05 * size


def test_a_peer_that_cannot_step_is_left_out() -> None:
    def fails() -> None:
        raise RuntimeError("no kernel for this\nand a long story")

    with pytest.raises(Unsupported, match=r"RuntimeError: no kernel for this$"):
        building.warm_up(fails)
