"""The random numbers of stochastic rounding: which ones they are, which element gets which, and what they depend on."""

from __future__ import annotations

import itertools

import pytest
import torch

import regkernels
from regkernels import reference
from tests.support import cases, engine
from tests.support.random_numbers import KNOWN, documented, drawn, philox, placed, words

pytestmark = pytest.mark.interpreted

SETTINGS = [engine.REFERENCE, *engine.kernels()]
SEED, STEP = 0x89ABCDEF, 7


CARRY = 2**35
"""Elements of a parameter after which the second word of the counter is another one."""

PLACES = (1, 7, 8, 9, 511, CARRY - 3, CARRY - 304, CARRY - 523, CARRY, 2**38 - 17)

RUNS = {
    41: [(3, 1), (5, 2), (16, 8), (32, 7), (40, 9), (64, 5), (71, 9)],
    96: [(24 + 1000 * row, 24) for row in range(4)],
    66: [(4 + 1000 * row, 22) for row in range(3)],
    513: [(CARRY - 8, 3), (CARRY - 2, 510)],
}
"""By the number of elements: what a part of a parameter consists of, as place and length."""

GAPS = {(5, 4, 3): (7, 8), (3, 2, 70): (8, 300), (70, 3, 1): (1, 2), (4, 1, 9): (CARRY - 20, 3), (1, 6, 8): (16, 0)}
"""By the sizes of groups' layouts: the place of the first element, and how many of other parts follow each row of groups."""


def flat(size: int) -> torch.Tensor:
    return torch.empty(size)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    assert philox(words(counter), words(key)) == words(expected)
    like = torch.zeros(3, dtype=torch.int64)
    found = reference.philox(words(counter), words(key), like)  # type: ignore[arg-type]
    assert [tensor.tolist() for tensor in found] == [[word] * 3 for word in words(expected)]


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_each_element_gets_the_bits_that_are_documented(slot: int) -> None:
    """Around the edges of counters, blocks and chunks; the second parameter of the optimizer has a stream of its own."""
    sizes = (3, cases.CHUNK + 9)
    places = [*range(20), *range(504, 523), *range(8185, 8200), *range(cases.CHUNK - 9, cases.CHUNK + 9)]
    expected = torch.tensor([documented(place, SEED, 1, STEP, slot) for place in places])
    for setting in SETTINGS:
        short, long = drawn(setting, [flat(size) for size in sizes], seed=SEED, step=STEP, slot=slot)
        assert torch.equal(long[places], expected), setting
        assert short.tolist() == [documented(place, SEED, 0, STEP, slot) for place in range(3)], setting


@pytest.mark.parametrize("slot", [0, 1])
def test_a_part_of_a_parameter_draws_what_the_whole_does(slot: int) -> None:
    """Of weights in bfloat16 and of states of float32 weights, of which other numbers lie side by side in a register."""
    runs = {600 + size: [(place, 600 + size)] for size, place in enumerate(PLACES)} | RUNS
    expected = [
        [documented(place + i, SEED, stream, STEP, slot) for place, length in of_one for i in range(length)]
        for stream, of_one in enumerate(runs.values())
    ]
    with placed(runs):
        for setting in SETTINGS:
            found = drawn(setting, [flat(size) for size in runs], seed=SEED, step=STEP, slot=slot)
            assert [bits.tolist() for bits in found] == expected, setting


@pytest.mark.parametrize("slot", [0, 1])
def test_a_part_with_whole_groups_does_so(slot: int) -> None:
    runs, expected = {}, []
    for stream, ((outer, groups, inner), (place, gap)) in enumerate(GAPS.items()):
        row = groups * inner
        own = [(place + o * (row + gap), row) for o in range(outer)]
        runs[outer * row] = own
        bits = [documented(first + i, SEED, stream, STEP, slot) for first, _ in own for i in range(row)]
        expected.append(torch.tensor(bits).view(outer, groups, inner))
    layouts = [torch.empty(shape) for shape in GAPS]
    with placed(runs):
        for setting in SETTINGS:
            found = drawn(setting, layouts, seed=SEED, step=STEP, slot=slot, max_norm=1e30, group_dim=1)
            for bits, wanted in zip(found, expected, strict=True):
                assert torch.equal(bits, wanted), (setting, bits.shape)


@pytest.mark.parametrize("layout", ["contiguous", "offset", "transposed", "channels_last", "odd_strides_of_one"])
def test_the_place_is_that_in_memory(layout: str) -> None:
    placed = cases.LAYOUTS[layout](torch.zeros(2, 3, 4, 5))
    for setting in SETTINGS:
        (in_order,) = drawn(setting, [flat(120)])
        (bits,) = drawn(setting, [placed])
        strides = torch.tensor(torch.empty_like(placed).stride())
        places = (torch.cartesian_prod(*map(torch.arange, placed.shape)) * strides).sum(1)
        assert torch.equal(bits.flatten(), in_order[places]), setting


def test_neighbours_in_memory_do_not_change_it() -> None:
    """Parameters side by side in one buffer, with and without a gap, draw what they draw on their own."""
    sizes = [8, 16, 5, 300, 8]
    apart = [flat(size) for size in sizes]
    together = list(torch.zeros(sum(sizes)).split(sizes))
    for setting in SETTINGS:
        expected = drawn(setting, apart)
        for got, bits in zip(drawn(setting, together), expected, strict=True):
            assert torch.equal(got, bits), setting


@pytest.mark.parametrize("precision", cases.PRECISIONS, ids=str)
def test_flat_parameters_change_no_bit(precision: cases.Precision) -> None:
    values = [torch.randn(size).to(dtype) for dtype in precision.dtypes for size in (64, 128, 7, 32, 1)]
    gradients = [[torch.randn_like(value) for value in values] for _ in range(3)]
    for setting in engine.kernels():
        outcomes = []
        for moved in (False, True):
            params = [torch.nn.Parameter(value.clone()) for value in values]
            if moved:
                regkernels.FlatParameters(params)
            optimizer = engine.make("adamw", params, l1=0.3, **precision.options)
            for of_step in gradients:
                for param, gradient in zip(params, of_step, strict=True):
                    param.grad = gradient.clone() if param.grad is None or not moved else param.grad.copy_(gradient)
                with engine.active(setting):
                    optimizer.step()
            outcomes.append(engine.snapshot(optimizer))
        engine.assert_same(outcomes[1], outcomes[0], setting)


def test_seed_parameter_step_and_slot_each_give_other_numbers() -> None:
    size = 512
    for setting in SETTINGS[:2]:
        found = [
            bits
            for seed, step, slot in itertools.product((0, 1, 2**32 - 1), (1, 2, 300), (0, 1, 2))
            for bits in drawn(setting, [flat(size), flat(size)], seed=seed, step=step, slot=slot)
        ]
        again = drawn(setting, [flat(size), flat(size)], seed=1, step=2, slot=1)
        assert sum(torch.equal(bits, again[1]) for bits in found) == 1
        for a, b in itertools.combinations(found, 2):
            # Of 512 pairs of independent 16-bit numbers 1 in 128 has an equal pair; three are out of the question.
            assert (a == b).sum() < 3, setting


def test_every_bit_is_as_often_one_as_zero_and_no_neighbours_agree() -> None:
    numbers = reference.random_bits(flat(2**17), seed=1, stream=2, step=3, slot=0)
    ones = torch.stack([(numbers >> bit & 1).double() for bit in range(16)])
    deviation = (len(numbers) / 4) ** 0.5  # standard deviation of the number of ones
    assert ((ones.sum(1) - len(numbers) / 2).abs() < 5 * deviation).all()
    for distance in (1, 2, 8, 16):
        agree = (ones[:, distance:] == ones[:, :-distance]).sum(1)
        assert ((agree - (len(numbers) - distance) / 2).abs() < 5 * deviation).all(), distance


def test_numbers_beyond_32_bits_of_place_step_and_stream() -> None:
    """The step wraps around; nothing overflows on the way."""
    like = flat(8)
    wrapped = reference.random_bits(like, 5, 2**32 + 3, 2**32 + 1, 0)
    assert torch.equal(wrapped, reference.random_bits(like, 5, 3, 1, 0))
