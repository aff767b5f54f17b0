// Functions of single elements, over runs of weights.
#pragma once

#include "sums.h"

namespace regkernels {
namespace {

// block(in, out, numel) for pieces in the compute type; in and out may be the same memory.
template <class T, class Block>
inline void map_blocks(const void* in, void* out, int64_t numel, const Block& block) {
    using C = typename T::Compute;
    const auto* x = static_cast<const typename T::Storage*>(in);
    auto* y = static_cast<typename T::Storage*>(out);
    if constexpr (sizeof(*x) == sizeof(C)) {
        block(x, y, numel);
    } else {
        C wide[kPiece];
        for (int64_t begin = 0; begin < numel; begin += kPiece) {
            const int64_t count = numel - begin < kPiece ? numel - begin : kPiece;
            widen<T>(x + begin, wide, count);
            block(wide, wide, count);
            narrow<T>(wide, y + begin, count);
        }
    }
}

// out = function(in), element by element; both may be the same memory.
template <class T, class Function>
inline void map(const void* in, void* out, int64_t numel, const Function& function) {
    using C = typename T::Compute;
    map_blocks<T>(in, out, numel, [&function](const C* x, C* y, int64_t count) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) y[i] = function(x[i]);
    });
}

}  // namespace
}  // namespace regkernels
