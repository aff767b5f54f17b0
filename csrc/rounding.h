// Numbers in fewer bits than they are computed in: rounding them by chance, or keeping what rounding takes away.
//
// Same names and arithmetic as regkernels/reference/rounding.py, a run at a time.
#pragma once

#include "dtypes.h"
#include "table.h"

namespace regkernels {
namespace {

// Random numbers are made as 32-bit words and read as halves.
typedef uint16_t __attribute__((may_alias)) Half;

// Philox4x32-10, Salmon et al. (2011): eight times 16 bits for each counter. `first` is the place of the first element
// in its parameter, a multiple of 8; `words` takes 4 for every 8 elements begun.
inline void random_bits(uint32_t* __restrict words, int64_t first, int64_t numel, uint32_t seed, uint32_t stream,
                        uint32_t step, uint32_t slot) {
    const int64_t counters = (numel + 7) / 8;
    const auto low = static_cast<uint32_t>(first / 8);  // blocks begin at multiples of their length: no carry
    const auto high = static_cast<uint32_t>(first / 8 >> 32);
#pragma omp simd
    for (int64_t i = 0; i < counters; ++i) {
        uint32_t c0 = low + static_cast<uint32_t>(i), c1 = high, c2 = step, c3 = slot;
        uint32_t k0 = seed, k1 = stream;
        for (int round = 0; round < 10; ++round) {
            const uint64_t one = uint64_t(0xD2511F53u) * c0, two = uint64_t(0xCD9E8D57u) * c2;
            c0 = static_cast<uint32_t>(two >> 32) ^ c1 ^ k0;
            c1 = static_cast<uint32_t>(two);
            c2 = static_cast<uint32_t>(one >> 32) ^ c3 ^ k1;
            c3 = static_cast<uint32_t>(one);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[4 * i] = c0;
        words[4 * i + 1] = c1;
        words[4 * i + 2] = c2;
        words[4 * i + 3] = c3;
    }
}

inline uint16_t round_stochastically(BFloat16, float x, uint32_t random) {
    return static_cast<uint16_t>(x != x ? 0x7fc0u : (bits_from_float(x) + random) >> 16);
}

inline uint16_t round_stochastically(Float16, float x, uint32_t random) {
    const uint32_t bits = bits_from_float(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + (random >> 3)) >> 13;
    // In units of the smallest subnormal number. What is larger than all of those is not used.
    const float scaled = float_from_bits(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
    const auto whole = static_cast<int32_t>(scaled);
    const auto fraction = static_cast<int32_t>((scaled - static_cast<float>(whole)) * 65536.0f);
    const auto subnormal = static_cast<uint32_t>(whole + (static_cast<int32_t>(random) < fraction));
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite));
}

template <class T>
inline void narrow_stochastically(const float* __restrict from, uint16_t* __restrict to, int64_t numel,
                                  const uint32_t* words) {
    const auto* random = reinterpret_cast<const Half*>(words);
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) to[i] = round_stochastically(T(), from[i], random[i]);
}

// A float32 as the nearest bfloat16, ties away from zero, and what is missing to its bits.
inline void split(const float* __restrict from, uint16_t* __restrict high, int16_t* __restrict low, int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const uint32_t bits = bits_from_float(from[i]);
        const uint32_t nearest = (bits + 0x8000u) >> 16;
        const bool nan = from[i] != from[i];
        high[i] = static_cast<uint16_t>(nan ? 0x7fc0u : nearest);
        low[i] = static_cast<int16_t>(nan ? 0 : static_cast<int32_t>(bits - (nearest << 16)));
    }
}

// A zero has no negative remainder. One is found where a weight was set to zero by hand, and would make it a NaN.
inline void join(const uint16_t* __restrict high, const int16_t* __restrict low, float* __restrict to, int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const uint32_t bits = high[i];
        const int32_t rest = low[i];
        const bool stale = (bits & 0x7fffu) == 0 && rest < 0;
        to[i] = float_from_bits((bits << 16) + static_cast<uint32_t>(stale ? 0 : rest));
    }
}

// A master copy that does not round to the weight is out of date: somebody has set the weight, and that counts.
template <class T>
inline void prefer_weight(const uint16_t* __restrict weight, const float* __restrict master, float* __restrict wide,
                          int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) wide[i] = T::store(master[i]) == weight[i] ? master[i] : wide[i];
}

}  // namespace
}  // namespace regkernels
