// The loops over a block that take an instance per rule: one for each compute type, whatever weights are stored in.
#pragma once

#include "rules.h"
#include "shrink.h"

namespace regkernels {
namespace {

// Which of the regularisation steps are in the loop of a rule. Chosen outside of it: each costs as much as a rule. What
// a gradient needs beside those is prepared before the loop, see below.
enum Loop : int { kStepOnly, kCoupledDecay, kThreshold, kShrink, kThresholdAndShrink, kLoops };

template <class C>
inline Loop loop_of(const Row<C>& row) {
    if (divides(row)) return thresholds(row) ? kThresholdAndShrink : kShrink;
    if (thresholds(row)) return kThreshold;
    return row.coupled_decay != 0 && row.subgradient == 0 ? kCoupledDecay : kStepOnly;
}

// Steps 2 to 4 of the specification, in a loop of their own. What follows is then given 1 for a scale. `out` may be
// `gradient`.
template <class C>
__attribute__((noinline)) void prepare_gradient(const C* weight, const C* gradient, C* out, int64_t numel,
                                                const Row<C>& row) {
    const Row<C> h = row;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        out[i] = gradient_of(weight[i], gradient[i], h);
    }
}

// Steps 2 to 10. With lr == 0 only the states change.
template <class C, template <class> class RuleOf, Loop kLoop>
void update_block(C* __restrict weight, const C* __restrict gradient, C* __restrict state0, C* __restrict state1,
                  C* __restrict state2, int64_t numel, C scale, const Row<C>& row) {
    constexpr int kStates = RuleOf<C>::kStates;
    constexpr bool kPerElement = RuleOf<C>::kStepPerElement;
    constexpr bool kThresholds = kLoop == kThreshold || kLoop == kThresholdAndShrink;
    const Row<C> h = row;
    const bool writes_weight = h.lr != 0;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        C a = kStates > 0 ? state0[i] : C(0);
        C b = kStates > 1 ? state1[i] : C(0);
        C c = kStates > 2 ? state2[i] : C(0);
        const C w = weight[i];
        C g = gradient[i] * scale;
        if (kLoop == kCoupledDecay) g = g + h.coupled_decay * w;
        C move, s;
        const C v = RuleOf<C>::observe(g, a, b, c, h);
        RuleOf<C>::advance(g, v, a, b, c, h, move, s);
        C z = w * h.decay - move;
        z = proximal_step<kPerElement, kThresholds, (kLoop >= kShrink)>(z, s, h);
        weight[i] = writes_weight ? z : w;
        if (kStates > 0) state0[i] = a;
        if (kStates > 1) state1[i] = b;
        if (kStates > 2) state2[i] = c;
    }
}

// Step 2 and steps 5 to 7, for what is more than a soft-threshold and a decay and follows in a loop of its own: weights
// become z, and `steps` the step of each element.
template <class C, template <class> class RuleOf>
void propose_block(C* __restrict weight, const C* __restrict gradient, C* __restrict state0, C* __restrict state1,
                   C* __restrict state2, C* __restrict steps, int64_t numel, C scale, const Row<C>& row) {
    constexpr int kStates = RuleOf<C>::kStates;
    const Row<C> h = row;
    const bool writes_weight = h.lr != 0;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        C a = kStates > 0 ? state0[i] : C(0);
        C b = kStates > 1 ? state1[i] : C(0);
        C c = kStates > 2 ? state2[i] : C(0);
        const C w = weight[i], g = gradient[i] * scale;
        C move, s;
        const C v = RuleOf<C>::observe(g, a, b, c, h);
        RuleOf<C>::advance(g, v, a, b, c, h, move, s);
        const C z = (h.cautious && opposed(move, w) ? w : w * h.decay) - move;
        weight[i] = writes_weight ? z : w;
        steps[i] = s;
        if (kStates > 0) state0[i] = a;
        if (kStates > 1) state1[i] = b;
        if (kStates > 2) state2[i] = c;
    }
}

template <class C>
struct RuleBlocks {
    int states;
    bool step_per_element;
    void (*update[kLoops])(C*, const C*, C*, C*, C*, int64_t, C, const Row<C>&);
    void (*propose)(C*, const C*, C*, C*, C*, C*, int64_t, C, const Row<C>&);
};

#define REGKERNELS_RULE_BLOCKS(NAME, RULE)                                                                       \
    {RULE<C>::kStates,                                                                                           \
     RULE<C>::kStepPerElement,                                                                                   \
     {update_block<C, RULE, kStepOnly>, update_block<C, RULE, kCoupledDecay>, update_block<C, RULE, kThreshold>, \
      update_block<C, RULE, kShrink>, update_block<C, RULE, kThresholdAndShrink>},                               \
     propose_block<C, RULE>},
template <class C>
constexpr RuleBlocks<C> kRuleBlocks[] = {REGKERNELS_RULES(REGKERNELS_RULE_BLOCKS)};

}  // namespace
}  // namespace regkernels
