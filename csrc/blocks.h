// Blocks of weights and states on their way between memory, in whatever format they are stored, and the first-level
// cache, where the rules find them in the compute type. What is stored in the compute type is updated where it lies.
#pragma once

#include "rounding.h"

namespace regkernels {
namespace {

// Elements per pass of the inner loop: 8 KiB of float32 weights and states stay in the first-level cache, where the
// sums read them again.
constexpr int64_t kBlock = 512;

#ifndef __clang__  // does not know the warning
// GCC thinks that a block could be empty, and none of its random numbers made.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Of one block of a segment, whose first element has this place in its whole parameter. Eight elements share a counter,
// and those of groups and of parts begin anywhere among them.
struct Random {
    int64_t place;
    uint32_t words[kBlock / 2 + 4 * kWidth];

    const Half* draw(const Segment& segment, int64_t numel, const Hyper& hyper, uint32_t slot) {
        const int64_t before = place % 8;
        random_bits(words, place - before, before + numel, static_cast<uint32_t>(hyper.seed),
                    static_cast<uint32_t>(segment.stream), static_cast<uint32_t>(static_cast<int64_t>(hyper.step)),
                    slot);
        return reinterpret_cast<const Half*>(words) + before;
    }
};

template <class C>
inline C* at(int64_t address, int64_t element) {
    return reinterpret_cast<C*>(address) + element;
}

// float64 and float32 weights.
template <class T, bool kWide>
struct WeightBlock {
    using C = typename T::Compute;
    C* values;

    void load(const Segment& segment, Rounding, int64_t first, int64_t) { values = at<C>(segment.weight, first); }
    void store(const Segment&, Rounding, int64_t, int64_t, const Hyper&, Random&) {}
    void reload(const Segment&, int64_t, int64_t) {}
};

// Half-precision weights.
template <class T>
struct WeightBlock<T, false> {
    float values[kBlock];

    void load(const Segment& segment, Rounding rounding, int64_t first, int64_t numel) {
        const auto* weight = at<const uint16_t>(segment.weight, first);
        if (rounding == kRemainder) {
            join(weight, at<const int16_t>(segment.kept, first), values, numel);
            return;
        }
        widen<T>(weight, values, numel);
        if (rounding == kMaster) prefer_weight<T>(weight, at<const float>(segment.kept, first), values, numel);
    }

    void store(const Segment& segment, Rounding rounding, int64_t first, int64_t numel, const Hyper& hyper,
               Random& random) {
        auto* weight = at<uint16_t>(segment.weight, first);
        if (rounding == kStochastic) {
            narrow_stochastically<T>(values, weight, numel, random.draw(segment, numel, hyper, 0));
        } else if (rounding == kRemainder) {
            split(values, weight, at<int16_t>(segment.kept, first), numel);
        } else {
            narrow<T>(values, weight, numel);
            if (rounding == kMaster)
                std::memcpy(at<float>(segment.kept, first), values, static_cast<size_t>(numel) * sizeof(float));
        }
    }

    // As they were stored: sums are those of rounded weights.
    void reload(const Segment& segment, int64_t first, int64_t numel) {
        widen<T>(at<const uint16_t>(segment.weight, first), values, numel);
    }
};

// States in bfloat16 pass through an array. Not inlined: what few need would cost the others, of which a small tensor's
// step is a large part, their registers.
__attribute__((noinline)) void load_narrow(const Segment& segment, int k, float* wide, int64_t first, int64_t numel) {
    widen<BFloat16>(at<const uint16_t>(segment.state[k], first), wide, numel);
}

__attribute__((noinline)) void store_narrow(const Segment& segment, int k, const float* wide, int64_t first,
                                            int64_t numel, const Hyper& hyper, Random& random) {
    narrow_stochastically<BFloat16>(wide, at<uint16_t>(segment.state[k], first), numel,
                                    random.draw(segment, numel, hyper, static_cast<uint32_t>(k) + 1));
}

// The states of a rule, as many as it has. Loops over all that there could be are unrolled.
template <class C>
struct StateBlocks {
    C* values[kMaxStates];
    C wide[kMaxStates][kBlock];

    void load(const Segment& segment, int states, bool narrow, int64_t first, int64_t numel) {
#pragma GCC unroll 3
        for (int k = 0; k < kMaxStates; ++k) values[k] = k < states ? at<C>(segment.state[k], first) : nullptr;
        if constexpr (sizeof(C) == sizeof(float)) {
            if (!narrow) return;
            for (int k = 0; k < states; ++k) {
                load_narrow(segment, k, wide[k], first, numel);
                values[k] = wide[k];
            }
        }
    }

    void store(const Segment& segment, int states, bool narrow, int64_t first, int64_t numel, const Hyper& hyper,
               Random& random) {
        if constexpr (sizeof(C) == sizeof(float)) {
            if (!narrow) return;
            for (int k = 0; k < states; ++k) store_narrow(segment, k, wide[k], first, numel, hyper, random);
        }
    }
};

}  // namespace
}  // namespace regkernels
