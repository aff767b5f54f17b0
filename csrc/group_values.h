// Square sums of groups of weights, and their multiplication with a number per group.
//
// The square of every element is added in double, within a tile in an order that depends on the layout alone.
#pragma once

#include "values.h"

namespace regkernels {
namespace {

template <class C>
inline double square(C x) {
    const double wide = double(x);
    return wide * wide;
}

// The square sum of one run of a group.
template <class T>
inline double run_squares(const typename T::Storage* run, int64_t numel) {
    if (numel < kLanes) {
        double sum = 0;
        for (int64_t i = 0; i < numel; ++i) sum += square(T::load(run[i]));
        return sum;
    }
    GradientLanes lanes = {};
    add<T>(lanes, run, numel);
    return add_lanes(lanes.square);
}

// `sums`, one per group of the tile, are overwritten.
template <class T>
void group_squares(const void* weight, const GroupShape& layout, const ValueTile& tile, double* sums) {
    using C = typename T::Compute;
    const auto* stored = static_cast<const typename T::Storage*>(weight);
    const int64_t groups = tile.group_end - tile.group_begin;
    for (int64_t g = 0; g < groups; ++g) sums[g] = 0;
    for (int64_t o = tile.outer_begin; o < tile.outer_end; ++o) {
        const auto* row = stored + (o * layout.groups + tile.group_begin) * layout.inner + tile.inner_begin;
        if (layout.inner > 1) {
            const int64_t numel = tile.inner_end - tile.inner_begin;
            for (int64_t g = 0; g < groups; ++g) sums[g] += run_squares<T>(row + g * layout.inner, numel);
            continue;
        }
        C wide[kRoom<T>];
        for (int64_t begin = 0; begin < groups; begin += kPiece) {
            const int64_t count = groups - begin < kPiece ? groups - begin : kPiece;
            const C* w = widened<T>(row + begin, wide, count);
#pragma omp simd
            for (int64_t g = 0; g < count; ++g) sums[begin + g] += square(w[g]);
        }
    }
}

// Elements [begin, end) of a tensor: out = factors[group] * w, with the factor rounded to the compute type.
template <class T>
void group_scale(const void* weight, void* out, int64_t begin, int64_t end, const GroupShape& layout,
                 const double* factors) {
    using C = typename T::Compute;
    const auto* stored = static_cast<const typename T::Storage*>(weight);
    auto* result = static_cast<typename T::Storage*>(out);
    C wide[kRoom<T>], values[kPiece];
    int64_t group = begin / layout.inner % layout.groups, within = begin % layout.inner;
    for (; begin < end; begin += kPiece) {
        const int64_t count = end - begin < kPiece ? end - begin : kPiece;
        const C* w = widened<T>(stored + begin, wide, count);
        for (int64_t i = 0; i < count;) {
            // A stretch of one run, or where a run is one element, of neighbouring groups.
            const int64_t left = layout.inner > 1 ? layout.inner - within : layout.groups - group;
            const int64_t stretch = left < count - i ? left : count - i;
            if (layout.inner > 1) {
                const C factor = C(factors[group]);
#pragma omp simd
                for (int64_t k = i; k < i + stretch; ++k) values[k] = factor * w[k];
                within += stretch;
                if (within == layout.inner) within = 0, ++group;
            } else {
                const double* factor = factors + group - i;
#pragma omp simd
                for (int64_t k = i; k < i + stretch; ++k) values[k] = C(factor[k]) * w[k];
                group += stretch;
            }
            if (group == layout.groups) group = 0;
            i += stretch;
        }
        narrow<T>(values, result + begin, count);
    }
}

}  // namespace
}  // namespace regkernels
