// The steps of the specification around the rule, of one element. Same names and order of lines as
// regkernels/reference/elementwise.py and step.py.
#pragma once

#include "arithmetic.h"
#include "row.h"

namespace regkernels {
namespace {

// Steps 2 to 4 of the specification.
template <class C>
inline C gradient_of(C w, C g, const Row<C>& h) {
    g = g * h.scale;
    g = h.coupled_decay != 0 ? g + h.coupled_decay * w : g;
    return h.subgradient != 0 ? g + h.subgradient * sign(w) : g;
}

// Whether a move works against the sign of its weight, which decay would do, too.
template <class C>
inline bool opposed(C move, C w) {
    return (move > 0 && w < 0) || (move < 0 && w > 0);
}

// x between -bound and bound. A comparison with NaN is false, so NaN falls through and stays.
template <class C>
inline C within(C x, C bound) {
    const C low = x < -bound ? -bound : x;
    return low > bound ? bound : low;
}

template <class C>
inline C at_most(C x, C bound) {
    return x > bound ? bound : x;
}

// Proximal operator of t * |x|. NaN stays; x - x is +0.
template <class C>
inline C soft_threshold(C z, C t) {
    const C p = z - within(z, t);  // outside of the selection, or compilers mask each of its operations
    return t > 0 ? p : z;
}

// Not larger than `upper`, not smaller than `lower`, and no -0 at a bound of 0.
template <class C>
inline C clamp(C z, C lower, C upper) {
    z = z <= lower ? lower : z;
    return z >= upper ? upper : z;
}

template <class C>
inline bool thresholds(const Row<C>& h) {
    return h.threshold != 0 || h.threshold_per_step != 0;
}

template <class C>
inline C threshold_of(C s, const Row<C>& h) {
    return h.threshold_per_step != 0 ? h.threshold_per_step * s : h.threshold;
}

template <class C>
inline bool divides(const Row<C>& h) {
    return h.shrink_divisor != 1 || h.shrink_per_step != 0;
}

template <class C>
inline C divisor_of(C s, const Row<C>& h) {
    return h.shrink_per_step != 0 ? 1 + h.shrink_per_step * s : h.shrink_divisor;
}

// What a proximal step from z to p makes where it may take no more than `largest`; p where it takes no more, or is NaN.
template <class C>
inline C limited(C z, C p, C largest) {
    const C taken = z - p;
    const C q = z - within(taken, largest);
    return __builtin_fabs(taken) > largest ? q : p;  // magnitude() would be a selection more
}

// Steps 8 to 10 of the specification: soft-threshold and proximal decay in the metric s, as far as they are asked for,
// within the limit. A soft-threshold takes no more than its threshold: that it is limited suffices, in one operation.
template <bool kStepPerElement, bool kThreshold, bool kShrink, class C>
inline C proximal_step(C z, C s, const Row<C>& h, C l1_weight = C(1)) {
    C p = z;
    if (kThreshold) {
        C t = (kStepPerElement ? threshold_of(s, h) : h.threshold) * l1_weight;
        if (kStepPerElement) t = at_most(t, h.largest_shrink);
        p = soft_threshold(z, t);
    }
    if (kShrink) {
        p = p / (kStepPerElement ? divisor_of(s, h) : h.shrink_divisor);
        if (kStepPerElement) p = limited(z, p, h.largest_shrink);
    }
    return p;
}

}  // namespace
}  // namespace regkernels
