// The step of elements: blocks of a segment are brought into the compute type, stepped by the rule, and stored.
#pragma once

#include "blocks.h"
#include "penalised.h"
#include "rule_blocks.h"
#include "sums.h"

namespace regkernels {
namespace {

// Elements [begin, end) of a segment; adds to `sums` where it is not null.
template <class T>
void update(const Segment& segment, const Kind& kind, int64_t begin, int64_t end, const Hyper& hyper, Sums* sums) {
    using C = typename T::Compute;
    constexpr bool kWide = sizeof(typename T::Storage) == sizeof(C);
    const RuleBlocks<C>& rule = kRuleBlocks<C>[kind.rule];
    const Row<C> row = row_for<C>(hyper, rule.step_per_element);
    const Loop loop = kind.penalty == kPlain ? loop_of(row) : kLoops;
    const bool prepares = row.subgradient != 0 || (row.coupled_decay != 0 && loop != kCoupledDecay);
    const C scale = prepares ? C(1) : row.scale;

    WeightLanes<true> weight_sums;
    GradientLanes gradient_sums;
    if (sums) weight_sums = {}, gradient_sums = {};
    WeightBlock<T, kWide> weight;
    StateBlocks<C> states;
    C ready_gradient[kBlock], steps[kBlock];
    Random random;
    for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t numel = end - i < kBlock ? end - i : kBlock;
        random.place = segment.place + i;
        const C* gradient = ready_gradient;
        if constexpr (kWide) {
            gradient = at<const C>(segment.gradient, i);
        } else {
            widen<T>(at<const uint16_t>(segment.gradient, i), ready_gradient, numel);
        }
        if (sums) add_run(gradient_sums, gradient, numel);
        weight.load(segment, kind.rounding, i, numel);
        if (hyper.skip == 0) {
            states.load(segment, rule.states, kind.narrow, i, numel);
            C* const* const state = states.values;
            if (prepares) {
                prepare_gradient(weight.values, gradient, ready_gradient, numel, row);
                gradient = ready_gradient;
            }
            if (kind.penalty == kPlain) {
                rule.update[loop](weight.values, gradient, state[0], state[1], state[2], numel, scale, row);
            } else {
                rule.propose(weight.values, gradient, state[0], state[1], state[2], steps, numel, scale, row);
                const C* l1_weight = kind.penalty == kWeightedL1 ? at<const C>(segment.l1_weight, i) : nullptr;
                if (row.lr != 0) kPenalise<C>[kind.penalty](weight.values, steps, l1_weight, numel, row);
            }
            states.store(segment, rule.states, kind.narrow, i, numel, hyper, random);
            if (row.lr != 0) weight.store(segment, kind.rounding, i, numel, hyper, random);
        }
        if (sums) {
            weight.reload(segment, i, numel);
            add_run(weight_sums, weight.values, numel);
        }
    }
    if (sums) {
        finish(weight_sums, sums);
        finish(gradient_sums, sums);
    }
}

}  // namespace
}  // namespace regkernels
