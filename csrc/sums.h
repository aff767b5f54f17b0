// Sums over a run of weights, bit for bit the same at every vector width.
//
// Element i goes to lane i mod kLanes, whatever the width of a register; the lanes are then added in index order. All
// lanes are doubles: exact enough at every length, and wide enough that no square of a float32 overflows.
#pragma once

#include "dtypes.h"
#include "table.h"
#include "vectors.h"

namespace regkernels {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kLanes / kWidth;

typedef double Doubles __attribute__((vector_size(kWidth * sizeof(double))));
typedef int64_t Integers __attribute__((vector_size(kWidth * sizeof(int64_t))));
typedef float Floats __attribute__((vector_size(kWidth * sizeof(float))));

inline Doubles load_doubles(const float* from) {
    Floats narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return __builtin_convertvector(narrow, Doubles);
}

inline Doubles load_doubles(const double* from) {
    Doubles wide;
    std::memcpy(&wide, from, sizeof wide);
    return wide;
}

inline Doubles absolute_value(Doubles x) {
    Integers bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= INT64_MAX;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

// A float's square is exact in a double, so rounding once or twice is the same: what is fused here has the bits of what
// is not on processors that cannot.
template <class C>
inline Doubles add_square(Doubles sum, Doubles x) {
    if constexpr (sizeof(C) == sizeof(float)) {
#if defined(__AVX512F__)
        return Doubles(_mm512_fmadd_pd(__m512d(x), __m512d(x), __m512d(sum)));
#elif defined(__FMA__)
        return Doubles(_mm256_fmadd_pd(__m256d(x), __m256d(x), __m256d(sum)));
#endif
    }
    return sum + x * x;
}

// Carried across the blocks of a chunk, whose lengths must be multiples of kLanes except for the last. They begin as
// {}, where somebody asks for sums: of the step of a small tensor, to clear them is a large part.
template <bool kNonzeros>
struct WeightLanes {
    Doubles absolute[kVectors];
    Doubles square[kVectors];
    Integers nonzeros[kVectors];

    template <class C>
    void add16(const C* w) {
        for (int v = 0; v < kVectors; ++v) {
            const Doubles x = load_doubles(w + v * kWidth);
            absolute[v] += absolute_value(x);
            square[v] = add_square<C>(square[v], x);
            if (kNonzeros) nonzeros[v] -= x != 0;  // a true comparison is -1
        }
    }
};

struct GradientLanes {
    Doubles square[kVectors];

    template <class C>
    void add16(const C* g) {
        for (int v = 0; v < kVectors; ++v) {
            const Doubles x = load_doubles(g + v * kWidth);
            square[v] = add_square<C>(square[v], x);
        }
    }
};

// The last elements are padded with zeros, which add nothing to any sum.
template <class C, class Lanes>
inline void add_run(Lanes& total, const C* values, int64_t numel) {
    Lanes lanes = total;  // a local copy, for the compiler to keep in registers
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes) lanes.add16(values + i);
    if (i < numel) {
        C tail[kLanes] = {};
        std::memcpy(tail, values + i, static_cast<size_t>(numel - i) * sizeof(C));
        lanes.add16(tail);
    }
    total = lanes;
}

// Half-precision weights are widened first, a piece at a time that stays in the first-level cache.
constexpr int64_t kPiece = 256;
static_assert(kPiece % kLanes == 0, "a piece must not end within the lanes");

template <class T, class Lanes>
inline void add(Lanes& lanes, const typename T::Storage* stored, int64_t numel) {
    if constexpr (sizeof(typename T::Storage) == sizeof(typename T::Compute)) {
        add_run(lanes, stored, numel);
    } else {
        typename T::Compute wide[kPiece];
        for (int64_t begin = 0; begin < numel; begin += kPiece) {
            const int64_t count = numel - begin < kPiece ? numel - begin : kPiece;
            widen<T>(stored + begin, wide, count);
            add_run(lanes, wide, count);
        }
    }
}

template <class Vector>
inline double add_lanes(const Vector (&lanes)[kVectors]) {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[lane / kWidth][lane % kWidth]);
    return sum;
}

template <bool kNonzeros>
inline void finish(const WeightLanes<kNonzeros>& lanes, Sums* sums) {
    sums->absolute += add_lanes(lanes.absolute);
    sums->square += add_lanes(lanes.square);
    if (kNonzeros) sums->nonzeros += add_lanes(lanes.nonzeros);
}

inline void finish(const GradientLanes& lanes, Sums* sums) { sums->gradient += add_lanes(lanes.square); }

}  // namespace
}  // namespace regkernels
