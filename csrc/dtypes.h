// Loading and storing weights: storage type <-> compute type.
//
// Rounding is to nearest even on every instruction set, as torch does. Single elements are converted with integer
// arithmetic, so that the loops around them vectorise the same way everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace regkernels {
namespace {

inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_from_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct Float64 {
    using Storage = double;
    using Compute = double;
    static Compute load(Storage x) { return x; }
    static Storage store(Compute x) { return x; }
};

struct Float32 {
    using Storage = float;
    using Compute = float;
    static Compute load(Storage x) { return x; }
    static Storage store(Compute x) { return x; }
};

struct BFloat16 {
    using Storage = uint16_t;
    using Compute = float;
    static Compute load(Storage x) { return float_from_bits(static_cast<uint32_t>(x) << 16); }
    static Storage store(Compute x) {
        const uint32_t bits = bits_from_float(x);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        // Rounding a NaN up would turn it into an infinity or a zero.
        return static_cast<Storage>(x != x ? 0x7fc0u : rounded);
    }
};

struct Float16 {
    using Storage = uint16_t;
    using Compute = float;
    static Compute load(Storage x) {
        const uint32_t sign = (static_cast<uint32_t>(x) & 0x8000u) << 16;
        const uint32_t magnitude = (static_cast<uint32_t>(x) & 0x7fffu) << 13;
        const uint32_t normal = magnitude + (112u << 23);
        const uint32_t special = magnitude + (224u << 23);  // infinity and NaN: the exponent field is full
        // A subnormal's bits read as the fraction of 2^-14 (implicit one added), which is then taken away again.
        const uint32_t subnormal = bits_from_float(float_from_bits(magnitude + (113u << 23)) - 0x1p-14f);
        const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
        return float_from_bits(sign | (magnitude >= (31u << 23) ? special : finite));
    }
    static Storage store(Compute x) {
        const uint32_t bits = bits_from_float(x);
        const uint32_t sign = (bits >> 16) & 0x8000u;
        const uint32_t magnitude = bits & 0x7fffffffu;
        // Adding 0.5 aligns the last bit kept with float16's subnormal spacing 2^-24; the addition rounds to even.
        const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
        // Rounding may carry into the exponent: 65520 and above become infinity by themselves.
        const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
        const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
        const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
        return static_cast<Storage>(sign | (magnitude >= 0x47800000u ? special : finite));
    }
};

// Whole runs, into and out of arrays that stay in the first-level cache. float16 has instructions for it: with integer
// arithmetic the conversions of SGD would take longer than its memory traffic.
template <class T>
inline void widen(const typename T::Storage* __restrict from, typename T::Compute* __restrict to, int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) to[i] = T::load(from[i]);
}

template <class T>
inline void narrow(const typename T::Compute* __restrict from, typename T::Storage* __restrict to, int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) to[i] = T::store(from[i]);
}

#ifdef __F16C__
template <>
inline void widen<Float16>(const uint16_t* __restrict from, float* __restrict to, int64_t numel) {
    int64_t i = 0;
    for (; i + 8 <= numel; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    for (; i < numel; ++i) to[i] = Float16::load(from[i]);
}

template <>
inline void narrow<Float16>(const float* __restrict from, uint16_t* __restrict to, int64_t numel) {
    int64_t i = 0;
    for (; i + 8 <= numel; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < numel; ++i) to[i] = Float16::store(from[i]);
}
#endif

}  // namespace
}  // namespace regkernels
