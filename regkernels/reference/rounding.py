"""Stores numbers in fewer bits than they are computed in: rounding them by chance, or keeping what rounding takes away."""

from __future__ import annotations

import torch
from torch import Tensor

from regkernels.table.formats import compute_dtype

_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int], like: Tensor) -> list[Tensor]:
    """Computes Philox4x32-10: four words of 32 random bits for each counter of four words; int64 tensors shaped as ``like``.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), section 4.3.
    """
    c0, c1, c2, c3 = (torch.zeros_like(like) + word for word in counter)
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64
        c0, c1 = (second >> 32 & _WORD) ^ c1 ^ k0, second & _WORD
        c2, c3 = (first >> 32 & _WORD) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def random_bits(like: Tensor, seed: int, stream: int, step: int, slot: int, places: Tensor | int = 0) -> Tensor:
    """Draws 16 random bits for each element of a dense tensor, int64, by the element's place in memory order.

    Eight elements share a counter: the element at place i has the half-word ``i % 8`` of counter ``i // 8``. The key is the
    seed and the parameter's number ``stream``; beside i the counter holds the step, and in ``slot`` which of its tensors this
    is. ``places``: of a tensor that is a part of a parameter, the place that its first element in memory order has in the
    whole parameter, where the others follow it there, too; otherwise all of them, int64, in memory order. A part so has the
    bits that the whole has there.
    """
    if isinstance(places, int):
        places = torch.arange(places, places + like.numel(), device=like.device)
    places = places.to(like.device)
    counters, counter_of = (places >> 3).unique_consecutive(return_inverse=True)
    words = philox((counters & _WORD, counters >> 32, step & _WORD, slot), (seed, stream & _WORD), counters)
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    return halves[counter_of, places & 7].as_strided(like.shape, like.stride())


def round_stochastically(x: Tensor, dtype: torch.dtype, random: Tensor) -> Tensor:
    """Rounds ``x``, float32, to bfloat16 or float16: one of its two neighbours, the nearer the likelier, so that the mean is x.

    ``random``: int64 in [0, 2^16), added below the last bit that is kept; the sum is cut off there. A number of ``dtype``
    stays itself, so do infinities; NaN stays NaN. What is too large becomes infinite, as it does when rounded to nearest.
    Of a float16 that will be subnormal, what is below 2^-16 of the smallest one (2^-40) is lost.
    """
    bits = x.view(torch.int32).to(torch.int64) & _WORD
    if dtype == torch.bfloat16:
        rounded = torch.where(x != x, 0x7FC0, (bits + random) >> 16)
    else:
        sign, magnitude = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
        normal = (magnitude - (112 << 23) + (random >> 3)) >> 13
        units = (x.abs() * 2.0**40).clamp(max=2.0**26).nan_to_num()  # 2^16 are the smallest subnormal number
        subnormal = (units.to(torch.int64) + random) >> 16
        finite = torch.where(magnitude < 0x38800000, subnormal, normal)
        special = torch.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
        rounded = sign | torch.where(magnitude >= 0x47800000, special, finite)
    return _as_half(rounded, dtype)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Splits ``x``, float32, into the nearest bfloat16 (ties away from zero) and the int16 that its bits lack; see `join`."""
    bits = x.view(torch.int32).to(torch.int64)
    high = torch.where(x != x, 0x7FC0, (bits + 0x8000) >> 16)
    low = torch.where(x != x, 0, bits - (high << 16))
    return _as_half(high, torch.bfloat16), low.to(torch.int16)


def join(weight: Tensor, remainder: Tensor) -> Tensor:
    """Returns the float32 number that `split` made ``weight`` and ``remainder`` of.

    A zero has no negative remainder, and an infinity no positive one. Such a one is found where the weight was set by hand,
    and would make it a NaN.
    """
    high = weight.view(torch.int16).to(torch.int64)
    magnitude = high & 0x7FFF
    low = remainder.to(torch.int64)
    stale = ((magnitude == 0) & (low < 0)) | ((magnitude == 0x7F80) & (low > 0))
    low = torch.where(stale, 0, low)
    return _wrapped((high << 16) + low, 32).to(torch.int32).view(torch.float32)


def widen(weight: Tensor, rounding: str, kept: Tensor | None) -> Tensor:
    """Returns a weight in the compute type, with what is ``kept`` beside it.

    A master copy that does not round to the weight is out of date: somebody has set the weight, and that counts.
    """
    w = weight.to(compute_dtype(weight.dtype))
    if kept is None:
        return w
    if rounding == "remainder":
        return join(weight, kept)
    return torch.where(_bits(kept.to(weight.dtype)) == _bits(weight), kept, w)


def _bits(half: Tensor) -> Tensor:
    return half.view(torch.int16)


def _as_half(pattern: Tensor, dtype: torch.dtype) -> Tensor:
    return _wrapped(pattern, 16).to(torch.int16).view(dtype)


def _wrapped(pattern: Tensor, bits: int) -> Tensor:
    """Returns the signed integer whose lowest bits these are."""
    half = 1 << (bits - 1)
    return ((pattern + half) & (2 * half - 1)) - half
