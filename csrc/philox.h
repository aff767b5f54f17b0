// Philox4x32-10, Salmon et al. (2011), several counters at a time.
//
// A register holds one word of several counters, each in the low half of 64 bits, since that is where processors take
// the factors of a wide product from. What is left in the high halves does not matter until the end.
#pragma once

#include <cstring>

#include "vectors.h"

namespace regkernels {
namespace {

typedef uint64_t Words __attribute__((vector_size(kWidth * sizeof(uint64_t))));

// multiply: of the low halves. even, odd: those lanes of both, {a0, b0, a2, b2, ...} and {a1, b1, a3, b3, ...}.
#if defined(__AVX512F__)
// With a mask of all lanes: GCC 12 warns of the plain ones, whose definitions use a variable that has no value.
inline Words multiply(Words a, Words b) { return Words(_mm512_maskz_mul_epu32(0xff, __m512i(a), __m512i(b))); }
inline Words even(Words a, Words b) { return Words(_mm512_maskz_unpacklo_epi64(0xff, __m512i(a), __m512i(b))); }
inline Words odd(Words a, Words b) { return Words(_mm512_maskz_unpackhi_epi64(0xff, __m512i(a), __m512i(b))); }
#elif defined(__AVX2__)
inline Words multiply(Words a, Words b) { return Words(_mm256_mul_epu32(__m256i(a), __m256i(b))); }
inline Words even(Words a, Words b) { return Words(_mm256_unpacklo_epi64(__m256i(a), __m256i(b))); }
inline Words odd(Words a, Words b) { return Words(_mm256_unpackhi_epi64(__m256i(a), __m256i(b))); }
#elif defined(__x86_64__)
inline Words multiply(Words a, Words b) { return Words(_mm_mul_epu32(__m128i(a), __m128i(b))); }
inline Words even(Words a, Words b) { return Words(_mm_unpacklo_epi64(__m128i(a), __m128i(b))); }
inline Words odd(Words a, Words b) { return Words(_mm_unpackhi_epi64(__m128i(a), __m128i(b))); }
#else
inline Words multiply(Words a, Words b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
inline Words even(Words a, Words b) { return Words{a[0], b[0]}; }
inline Words odd(Words a, Words b) { return Words{a[1], b[1]}; }
#endif

// Registers that are worked on side by side: a round has to wait for the products of the one before.
#if defined(__AVX512F__)
constexpr int kTogether = 4;
#else
constexpr int kTogether = 2;
#endif

// Elements after which the second word of their counters is another one.
constexpr int64_t kCarry = int64_t{8} << 32;

// Of kVectors times the counters `first`, each time kWidth further on. Inlined, so that what is the same for all
// counters of a block is computed once, and unrolled, so that words stay in registers.
template <int kVectors>
__attribute__((always_inline)) inline void philox(uint32_t* words, Words first, uint32_t high, uint32_t seed,
                                                  uint32_t stream, uint32_t step, uint32_t slot) {
    const Words none = {}, factor0 = none + 0xD2511F53u, factor1 = none + 0xCD9E8D57u, low_half = none + 0xffffffffu;
    Words c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        c0[v] = first + static_cast<uint64_t>(v * kWidth);
        c1[v] = none + high;
        c2[v] = none + step;
        c3[v] = none + slot;
    }
    uint32_t k0 = seed, k1 = stream;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        for (int v = 0; v < kVectors; ++v) {
            const Words one = multiply(c0[v], factor0), two = multiply(c2[v], factor1);
            c0[v] = (two >> 32) ^ c1[v] ^ k0;
            c1[v] = two;
            c2[v] = (one >> 32) ^ c3[v] ^ k1;
            c3[v] = one;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        const Words a = (c0[v] & low_half) | (c1[v] << 32), b = (c2[v] & low_half) | (c3[v] << 32);
        const Words ordered[2] = {even(a, b), odd(a, b)};
        std::memcpy(words + v * 4 * kWidth, ordered, sizeof ordered);
    }
}

// Eight times 16 bits for each counter. `first` is the place of the first element in its parameter, a multiple of 8.
// `words` takes 4 for each of the counters begun, whose number is rounded up to a multiple of kWidth. The second word
// of all counters is that of the first one: were it not the same, half of two rounds could not be shared.
inline void random_bits_before_carry(uint32_t* words, int64_t first, int64_t numel, uint32_t seed, uint32_t stream,
                                     uint32_t step, uint32_t slot) {
    constexpr int64_t kElements = 8 * kWidth;
    const auto high = static_cast<uint32_t>(first / 8 >> 32);
    Words counter = {};  // of each lane: even and odd bring them in order
    for (int lane = 0; lane < kWidth; ++lane) counter[lane] = static_cast<uint64_t>(lane / 2 + lane % 2 * (kWidth / 2));
    counter += static_cast<uint32_t>(first / 8);
    int64_t i = 0;
    for (; i + (kTogether - 1) * kElements < numel; i += kTogether * kElements, counter += kTogether * kWidth)
        philox<kTogether>(words + i / 2, counter, high, seed, stream, step, slot);
    for (; i < numel; i += kElements, counter += kWidth)
        philox<1>(words + i / 2, counter, high, seed, stream, step, slot);
}

// Not inlined: what one block in 2^35 elements needs would cost the others registers.
__attribute__((noinline)) void random_bits_after_carry(uint32_t* words, int64_t first, int64_t numel, uint32_t seed,
                                                       uint32_t stream, uint32_t step, uint32_t slot) {
    random_bits_before_carry(words, first, numel, seed, stream, step, slot);
}

// The same for any counters. A block is too short for two carries.
inline void random_bits(uint32_t* words, int64_t first, int64_t numel, uint32_t seed, uint32_t stream, uint32_t step,
                        uint32_t slot) {
    random_bits_before_carry(words, first, numel, seed, stream, step, slot);
    const int64_t before = kCarry - (first & (kCarry - 1));
    if (__builtin_expect(before < numel, 0))
        random_bits_after_carry(words + before / 2, first + before, numel - before, seed, stream, step, slot);
}

}  // namespace
}  // namespace regkernels
