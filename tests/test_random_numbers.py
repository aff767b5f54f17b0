"""The random numbers of stochastic rounding: which ones they are, which element gets which, and what they depend on."""

from __future__ import annotations

import itertools

import pytest
import torch

import regkernels
from regkernels import reference
from tests import cases, engine
from tests.random_numbers import KNOWN, documented, drawn, philox, words

pytestmark = pytest.mark.interpreted

SETTINGS = [engine.REFERENCE, *engine.kernels()]
SEED, STEP = 0x89ABCDEF, 7


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
