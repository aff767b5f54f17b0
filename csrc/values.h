// The values and slopes of the penalties beyond L1 and L2, over runs of weights. Their formulas are in penalties.h.
#pragma once

#include "map.h"
#include "penalties.h"
#include "sums.h"

namespace regkernels {
namespace {

// Element i of a chunk goes to lane i mod kLanes, as in sums.h. The terms pass through an array: formed by instructions
// of any width, they are added in one order.
struct TermLanes {
    Doubles lanes[kVectors] = {};

    // `terms` has room up to the next multiple of kLanes.
    void add(double* terms, int64_t numel) {
        for (int64_t i = numel; i % kLanes != 0; ++i) terms[i] = 0;
        for (int64_t i = 0; i < numel; i += kLanes)
            for (int v = 0; v < kVectors; ++v) lanes[v] += load_doubles(terms + i + v * kWidth);
    }
};

// The next `count` weights in their compute type: where they lie, or widened into `wide`.
template <class T>
inline const typename T::Compute* widened(const typename T::Storage* stored, typename T::Compute* wide, int64_t count) {
    if constexpr (sizeof(typename T::Storage) == sizeof(typename T::Compute)) {
        (void)wide, (void)count;
        return stored;
    } else {
        widen<T>(stored, wide, count);
        return wide;
    }
}

template <class T>
constexpr int64_t kRoom = sizeof(typename T::Storage) == sizeof(typename T::Compute) ? 1 : kPiece;

// What takes an instance per formula.
template <class C>
struct FormulaBlocks {
    void (*terms)(const C* w, double* terms, int64_t numel, const Numbers& numbers);
    // `out` may be `w`.
    void (*slope)(const C* w, C* out, int64_t numel, const Numbers& numbers);
};

template <class C, class Formula>
void terms_block(const C* w, double* terms, int64_t numel, const Numbers& numbers) {
    const Numbers n = numbers;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) terms[i] = Formula::value(double(w[i]), n);
}

template <class C, class Formula>
void slope_block(const C* w, C* out, int64_t numel, const Numbers& numbers) {
    const C a = C(numbers.first), b = C(numbers.second), c = C(numbers.third), d = C(numbers.fourth);
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) out[i] = Formula::template slope<C>(w[i], a, b, c, d);
}

#define REGKERNELS_FORMULA_BLOCKS(NAME, FORMULA) {terms_block<C, FORMULA>, slope_block<C, FORMULA>},
template <class C>
constexpr FormulaBlocks<C> kFormulaBlocks[] = {REGKERNELS_FORMULAS(REGKERNELS_FORMULA_BLOCKS)};

template <class T>
void value(const void* weight, int64_t numel, int64_t formula, const Numbers& numbers, double* sum) {
    using C = typename T::Compute;
    const auto* stored = static_cast<const typename T::Storage*>(weight);
    TermLanes lanes;
    C wide[kRoom<T>];
    double terms[kPiece];
    for (int64_t begin = 0; begin < numel; begin += kPiece) {
        const int64_t count = numel - begin < kPiece ? numel - begin : kPiece;
        kFormulaBlocks<C>[formula].terms(widened<T>(stored + begin, wide, count), terms, count, numbers);
        lanes.add(terms, count);
    }
    *sum += add_lanes(lanes.lanes);
}

template <class T>
void slope(const void* weight, void* out, int64_t numel, int64_t formula, const Numbers& numbers) {
    using C = typename T::Compute;
    map_blocks<T>(weight, out, numel, [formula, &numbers](const C* w, C* result, int64_t count) {
        kFormulaBlocks<C>[formula].slope(w, result, count, numbers);
    });
}

// `factors`, in the compute type, has one number per weight. A factor of 0 leaves its element out, whatever that is.
template <class T>
void weighted_value(const void* weight, const void* factors, int64_t numel, Weighted* total) {
    using C = typename T::Compute;
    const auto* stored = static_cast<const typename T::Storage*>(weight);
    const auto* factor = static_cast<const C*>(factors);
    TermLanes lanes;
    C wide[kRoom<T>];
    double terms[kPiece];
    int64_t refused = 0;
    for (int64_t begin = 0; begin < numel; begin += kPiece) {
        const int64_t count = numel - begin < kPiece ? numel - begin : kPiece;
        const C* w = widened<T>(stored + begin, wide, count);
        const C* f = factor + begin;
#pragma omp simd reduction(+ : refused)
        for (int64_t i = 0; i < count; ++i) {
            terms[i] = f[i] != 0 ? double(f[i]) * magnitude(double(w[i])) : 0.0;
            refused += !(f[i] >= 0 && f[i] < C(__builtin_inf()));
        }
        lanes.add(terms, count);
    }
    total->sum += add_lanes(lanes.lanes);
    total->refused += double(refused);
}

// out = scale * factor * sign(w)
template <class T>
void weighted_slope(const void* weight, const void* factors, void* out, int64_t numel, double scale) {
    using C = typename T::Compute;
    const auto* stored = static_cast<const typename T::Storage*>(weight);
    const auto* factor = static_cast<const C*>(factors);
    auto* result = static_cast<typename T::Storage*>(out);
    const C s = C(scale);
    C wide[kRoom<T>], values[kPiece];
    for (int64_t begin = 0; begin < numel; begin += kPiece) {
        const int64_t count = numel - begin < kPiece ? numel - begin : kPiece;
        const C* w = widened<T>(stored + begin, wide, count);
        const C* f = factor + begin;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) values[i] = (s * f[i]) * sign(w[i]);
        narrow<T>(values, result + begin, count);
    }
}

}  // namespace
}  // namespace regkernels
