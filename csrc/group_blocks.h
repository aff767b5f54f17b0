// The loops over a block where groups of elements have one second moment and one norm each.
//
// Same names and order of lines as in regkernels/reference/groups.py.
#pragma once

#include "rules.h"
#include "shrink.h"

namespace regkernels {
namespace {

// Second moments as they will be.
template <class C, template <class> class RuleOf>
__attribute__((noinline)) void observe_block(const C* gradient, C* const* states, C* v, int64_t numel,
                                             const Row<C>& row) {
    constexpr int kStates = RuleOf<C>::kStates;
    const Row<C> h = row;
    const C *state0 = states[0], *state1 = states[1], *state2 = states[2];
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        C a = kStates > 0 ? state0[i] : C(0);
        C b = kStates > 1 ? state1[i] : C(0);
        C c = kStates > 2 ? state2[i] : C(0);
        v[i] = RuleOf<C>::observe(gradient[i], a, b, c, h);
    }
}

// Steps 5 to 7. `out` may be `weight`. With kUniform `shared` is one number for all elements.
template <class C, template <class> class RuleOf, bool kUniform, bool kStore>
__attribute__((noinline)) void propose_groups(const C* weight, const C* gradient, C* const* states, const C* shared,
                                              C* out, int64_t numel, const Row<C>& row) {
    constexpr int kStates = RuleOf<C>::kStates;
    const Row<C> h = row;
    const C of_all = shared[0];
    C *state0 = states[0], *state1 = states[1], *state2 = states[2];
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        C a = kStates > 0 ? state0[i] : C(0);
        C b = kStates > 1 ? state1[i] : C(0);
        C c = kStates > 2 ? state2[i] : C(0);
        const C w = weight[i], g = gradient[i];
        C move, s;
        RuleOf<C>::observe(g, a, b, c, h);
        RuleOf<C>::advance(g, kUniform ? of_all : shared[i], a, b, c, h, move, s);
        out[i] = (h.cautious && opposed(move, w) ? w : w * h.decay) - move;
        if (kStore && kStates > 0) state0[i] = a;
        if (kStore && kStates > 1) state1[i] = b;
        if (kStore && kStates > 2) state2[i] = c;
    }
}

// What is done to elements, bounds and soft-threshold: z becomes what that has left of it, and `taken` what it has
// taken.
template <class C, bool kUniform>
__attribute__((noinline)) void threshold_block(C* z, C* taken, const C* threshold, int64_t numel, C lower, C upper) {
    const C of_all = threshold[0];
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const C t = kUniform ? of_all : threshold[i];
        const C v = clamp(z[i], lower, upper);
        z[i] = soft_threshold(v, t);
        taken[i] = t > 0 ? within(v, t) : C(0);
    }
}

// Products of what was taken and what is left, in double; 0 where nothing was taken, also of an infinite weight.
template <class C>
__attribute__((noinline)) void multiply_block(const C* taken, const C* left, double* both, int64_t numel) {
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const double e = static_cast<double>(taken[i]);
        both[i] = e == 0 ? 0.0 : e * static_cast<double>(left[i]);
    }
}

// With kUniform all of these are one number for all elements. Where something of what was taken is kept, there is a
// divisor.
template <class C, bool kUniform>
__attribute__((noinline)) void keep_block(C* z, const C* taken, const C* kept, const C* factor, const C* divisor,
                                          int64_t numel) {
    const C kept_of_all = kept[0], factor_of_all = factor[0], divisor_of_all = divisor[0];
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const C k = kUniform ? kept_of_all : kept[i];
        const C f = kUniform ? factor_of_all : factor[i];
        const C d = kUniform ? divisor_of_all : divisor[i];
        const C x = z[i] * f;
        const C shrunk = f == 0 ? C(0) : x / d;
        z[i] = k == 0 ? shrunk : (k * taken[i] + x) / d;
    }
}

// With kUniform both are one number for all elements.
template <class C, bool kUniform, bool kDivides>
__attribute__((noinline)) void shrink_block(C* z, const C* factor, const C* divisor, int64_t numel) {
    const C factor_of_all = factor[0], divisor_of_all = divisor[0];
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const C f = kUniform ? factor_of_all : factor[i];
        const C x = z[i] * f;
        z[i] = f == 0 ? C(0) : (kDivides ? x / (kUniform ? divisor_of_all : divisor[i]) : x);
    }
}

// The steps of groups with these second moments.
template <class C, template <class> class RuleOf>
void steps_of_groups(const C* shared, C* steps, int64_t groups, const Row<C>& row) {
    const Row<C> h = row;
#pragma omp simd
    for (int64_t i = 0; i < groups; ++i) {
        C a = C(0), b = C(0), c = C(0), move, s;
        RuleOf<C>::advance(C(0), shared[i], a, b, c, h, move, s);
        steps[i] = s;
    }
}

// Sums over a group: with e what the soft-threshold has taken of z, and x what it has left.
struct Squares {
    double left;   // of x * x
    double taken;  // of e * e
    double both;   // of e * x
};

// What in a row depends on the size of groups, too.
template <class C>
struct OfNorm {
    C strength;
    C largest_shrink;
};

// What the step of a group makes of it: (kept * e + factor * x) / divisor.
template <class C>
struct Shrinkage {
    C kept, factor, divisor;
};

// The norm of a * e + b * x.
template <class C>
inline C norm_of(C a, C b, const Squares& squares) {
    const double p = static_cast<double>(a), q = static_cast<double>(b);
    return C(square_root(p * p * squares.taken + 2.0 * p * q * squares.both + q * q * squares.left));
}

// What is done to a group with these sums and step `s`.
template <class C>
inline Shrinkage<C> shrinkage(const Squares& squares, C s, const OfNorm<C>& of_norm, const Row<C>& h) {
    const C n = C(square_root(squares.left));
    const C limit = h.gain * s * of_norm.strength;
    C factor = limit > 0 ? (n <= limit ? C(0) : 1 - limit / n) : C(1);
    C divisor = divisor_of(s, h);
    const C q = 1 - factor / divisor;
    const C d = norm_of(C(1), q, squares);
    const bool exceeds = d > of_norm.largest_shrink;
    const C part = of_norm.largest_shrink / d;
    const C kept = exceeds && squares.taken > 0 ? 1 - part : C(0);
    factor = exceeds ? 1 - part * q : factor;
    divisor = exceeds ? C(1) : divisor;
    const C norm = exceeds ? norm_of(1 - part, factor, squares) : (limit > 0 ? n - limit : n);
    divisor = norm / divisor > h.max_norm ? norm / h.max_norm : divisor;
    divisor = h.unit_norm && norm > 0 ? norm : divisor;
    return {kept, factor, divisor};
}

template <class C>
struct GroupBlocks {
    int states;
    bool step_per_element;
    void (*observe)(const C*, C* const*, C*, int64_t, const Row<C>&);
    // Of [uniform][store].
    void (*propose[2][2])(const C*, const C*, C* const*, const C*, C*, int64_t, const Row<C>&);
    void (*steps)(const C*, C*, int64_t, const Row<C>&);
};

// Where no second moment is shared, one loop is enough.
#define REGKERNELS_GROUP_BLOCKS(NAME, RULE)                                         \
    {RULE<C>::kStates,                                                              \
     RULE<C>::kStepPerElement,                                                      \
     observe_block<C, RULE>,                                                        \
     {{propose_groups<C, RULE, !RULE<C>::kStepPerElement, false>,                   \
       propose_groups<C, RULE, !RULE<C>::kStepPerElement, true>},                   \
      {propose_groups<C, RULE, true, false>, propose_groups<C, RULE, true, true>}}, \
     steps_of_groups<C, RULE>},
template <class C>
constexpr GroupBlocks<C> kGroupBlocks[] = {REGKERNELS_RULES(REGKERNELS_GROUP_BLOCKS)};

}  // namespace
}  // namespace regkernels
