// What follows the rule where a row of numbers does not say it all: a penalty, in a loop of its own over a block, which
// stays in the first-level cache. One loop for each pair of a rule and a penalty would be hundreds.
#pragma once

#include "penalties.h"

namespace regkernels {
namespace {

// The soft-threshold, with a strength per element where kWeighted.
template <bool kWeights>
struct Soft {
    static constexpr bool kWeighted = kWeights;
    template <class C>
    static C step(C z, C s, C l1_weight, const Row<C>& h) {
        const C p = divides(h) ? proximal_step<true, true, true>(z, s, h, l1_weight)
                               : proximal_step<true, true, false>(z, s, h, l1_weight);
        return clamp(p, h.lower, h.upper);
    }
};
using SoftThreshold = Soft<false>;
using WeightedSoftThreshold = Soft<true>;

// Any other penalty. With proximal decay of strength d, prox(f + d/2 x^2) with step t is prox(f) with step t / (1 + t
// d) of v / (1 + t d).
template <template <class> class Operator>
struct Penalised {
    static constexpr bool kWeighted = false;
    template <class C>
    static C step(C z, C s, C, const Row<C>& h) {
        const C divisor = divisor_of(s, h);
        const C t = h.gain * s / divisor;
        const C u = t * h.strength;
        const C v = z / divisor;
        const C x = Operator<C>::apply(v, t, u, h.strength, h.shape);
        const C p = u > 0 ? x : v;
        return clamp(limited(z, p, h.largest_shrink), h.lower, h.upper);
    }
};

// Steps 8 to 11 of the specification.
template <class C>
using Penalise = void (*)(C* weight, const C* steps, const C* l1_weight, int64_t numel, const Row<C>& row);

template <class C, class Shrinkage>
void penalise_block(C* __restrict weight, const C* __restrict steps, const C* __restrict l1_weight, int64_t numel,
                    const Row<C>& row) {
    const Row<C> h = row;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        weight[i] = Shrinkage::step(weight[i], steps[i], Shrinkage::kWeighted ? l1_weight[i] : C(1), h);
    }
}

#define REGKERNELS_PENALISE(NAME, TYPE, SHRINKAGE) penalise_block<C, SHRINKAGE>,
template <class C>
constexpr Penalise<C> kPenalise[] = {REGKERNELS_PENALTIES(REGKERNELS_PENALISE)};

}  // namespace
}  // namespace regkernels
