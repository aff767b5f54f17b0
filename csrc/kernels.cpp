// The kernels. This file is compiled once per instruction set, with REGKERNELS_TARGET naming it.
//
// Everything but the one accessor at the end has internal linkage, and nothing of the standard library's templates is
// used: the linker merges equal functions of all copies, and one that came from the AVX-512 copy would crash elsewhere.
#include "kernels.h"

#include "blocks.h"
#include "group_step.h"
#include "group_values.h"
#include "map.h"
#include "penalised.h"
#include "proximal.h"
#include "sums.h"
#include "values.h"

namespace regkernels {
namespace {

// Which of the regularisation steps a row asks for. Chosen outside of the loop: each costs as much as a rule.
enum Steps : int { kInGradient = 1, kThreshold = 2, kShrink = 4, kAllSteps = 8 };

// One element, steps 2 to 9 of the specification.
template <class C, template <class> class RuleOf, int kSteps>
inline C update_element(C w, C g, C& state0, C& state1, C& state2, const Row<C>& h) {
    g = g * h.scale;
    if (kSteps & kInGradient) {
        g = h.coupled_decay != 0 ? g + h.coupled_decay * w : g;
        g = h.subgradient != 0 ? g + h.subgradient * sign(w) : g;
    }
    w = w * h.decay;
    C move, s;
    const C v = RuleOf<C>::observe(g, state0, state1, state2, h);
    RuleOf<C>::advance(g, v, state0, state1, state2, h, move, s);
    constexpr bool kPerElement = RuleOf<C>::kStepPerElement;
    return proximal_step<kPerElement, (kSteps & kThreshold) != 0, (kSteps & kShrink) != 0>(w - move, s, h);
}

template <class C, template <class> class RuleOf, int kSteps>
void update_block(C* __restrict weight, const C* __restrict gradient, C* __restrict state0, C* __restrict state1,
                  C* __restrict state2, int64_t numel, const Row<C>& row) {
    constexpr int kStates = RuleOf<C>::kStates;
    const Row<C> h = row;
    const bool writes_weight = h.lr != 0;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        C a = kStates > 0 ? state0[i] : C(0);
        C b = kStates > 1 ? state1[i] : C(0);
        C c = kStates > 2 ? state2[i] : C(0);
        const C w = weight[i];
        const C z = update_element<C, RuleOf, kSteps>(w, gradient[i], a, b, c, h);
        weight[i] = writes_weight ? z : w;
        if (kStates > 0) state0[i] = a;
        if (kStates > 1) state1[i] = b;
        if (kStates > 2) state2[i] = c;
    }
}

template <class T, template <class> class RuleOf, bool kPenalised>
void update(const Segment& segment, int64_t begin, int64_t end, const Hyper& hyper, Sums* sums) {
    using C = typename T::Compute;
    constexpr int kStates = RuleOf<C>::kStates;
    constexpr bool kWide = sizeof(typename T::Storage) == sizeof(C);
    const Kind kind(segment.kind);
    const Row<C> row(hyper);
    const int steps = (row.coupled_decay != 0 || row.subgradient != 0 ? kInGradient : 0) |
                      (row.threshold != 0 || row.threshold_per_step != 0 ? kThreshold : 0) |
                      (row.shrink_divisor != 1 || row.shrink_per_step != 0 ? kShrink : 0);
    constexpr decltype(&update_block<C, RuleOf, 0>) kBlocks[kAllSteps] = {
        update_block<C, RuleOf, 0>, update_block<C, RuleOf, 1>, update_block<C, RuleOf, 2>, update_block<C, RuleOf, 3>,
        update_block<C, RuleOf, 4>, update_block<C, RuleOf, 5>, update_block<C, RuleOf, 6>, update_block<C, RuleOf, 7>};
    const auto block = kBlocks[steps];
    const Penalise<C> penalise_weights = penalise<C, RuleOf<C>::kStepPerElement>(kind.penalty);
    C element_steps[kPenalised ? kBlock : 1];

    WeightLanes<true> weight_sums;
    GradientLanes gradient_sums;
    WeightBlock<T, kWide> weight;
    StateBlock<C> states[kStates > 0 ? kStates : 1];
    C wide_gradient[kWide ? 1 : kBlock];
    Random random;
    for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t numel = end - i < kBlock ? end - i : kBlock;
        random.place = segment.place + i;
        const C* gradient = wide_gradient;
        if constexpr (kWide) {
            gradient = at<const C>(segment.gradient, i);
        } else {
            widen<T>(at<const uint16_t>(segment.gradient, i), wide_gradient, numel);
        }
        if (sums) add_run(gradient_sums, gradient, numel);
        weight.load(segment, kind.rounding, i, numel);
        if (hyper.skip == 0) {
            C* values[3] = {};
            for (int k = 0; k < kStates; ++k) {
                states[k].load(segment, k, kind.narrow, i, numel);
                values[k] = states[k].values;
            }
            if constexpr (kPenalised) {
                propose_block<C, RuleOf>(weight.values, gradient, values[0], values[1], values[2], element_steps, numel,
                                         row);
                const C* l1_weight = kind.penalty == kWeightedL1 ? at<const C>(segment.l1_weight, i) : nullptr;
                if (row.lr != 0) penalise_weights(weight.values, element_steps, l1_weight, numel, row);
            } else {
                block(weight.values, gradient, values[0], values[1], values[2], numel, row);
            }
            for (int k = 0; k < kStates; ++k) states[k].store(segment, k, kind.narrow, i, numel, hyper, random);
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

template <class T>
void reduce(const void* weight, int64_t numel, Sums* sums) {
    WeightLanes<false> lanes;
    add<T>(lanes, static_cast<const typename T::Storage*>(weight), numel);
    finish(lanes, sums);
}

template <class T>
void penalty_gradient(const void* weight, void* out, int64_t numel, double absolute, double square) {
    using C = typename T::Compute;
    const C a = C(absolute), b = C(square);
    map<T>(weight, out, numel, [a, b](C w) {
        const C gradient = a * sign(w);
        return b != 0 ? gradient + b * w : gradient;  // 0 * inf would be NaN
    });
}

template <class T>
void shrink(const void* in, void* out, int64_t numel, double threshold) {
    using C = typename T::Compute;
    const C t = C(threshold);
    map<T>(in, out, numel, [t](C x) { return soft_threshold(x, t); });
}

#define REGKERNELS_UPDATES(RULE, PENALISED)                                                               \
    update<Float64, RULE, PENALISED>, update<Float32, RULE, PENALISED>, update<Float16, RULE, PENALISED>, \
        update<BFloat16, RULE, PENALISED>
#define REGKERNELS_RULES(PENALISED)                                                                                   \
    REGKERNELS_UPDATES(SGD, PENALISED), REGKERNELS_UPDATES(Momentum, PENALISED), REGKERNELS_UPDATES(Adam, PENALISED), \
        REGKERNELS_UPDATES(AMSGrad, PENALISED), REGKERNELS_UPDATES(RMSprop, PENALISED),                               \
        REGKERNELS_UPDATES(RMSpropMomentum, PENALISED), REGKERNELS_UPDATES(RMSpropCentered, PENALISED),               \
        REGKERNELS_UPDATES(RMSpropCenteredMomentum, PENALISED), REGKERNELS_UPDATES(Adagrad, PENALISED),               \
        REGKERNELS_UPDATES(Lion, PENALISED), REGKERNELS_UPDATES(Still, PENALISED)
#define REGKERNELS_GROUPS(RULE)                                                               \
    update_groups<Float64, RULE>, update_groups<Float32, RULE>, update_groups<Float16, RULE>, \
        update_groups<BFloat16, RULE>
#define REGKERNELS_METRIC(METRIC) \
    proximal<Float64, METRIC>, proximal<Float32, METRIC>, proximal<Float16, METRIC>, proximal<BFloat16, METRIC>
#define REGKERNELS_FORMULA(KERNEL, FORMULA) \
    KERNEL<Float64, FORMULA>, KERNEL<Float32, FORMULA>, KERNEL<Float16, FORMULA>, KERNEL<BFloat16, FORMULA>
#define REGKERNELS_FORMULAS(KERNEL)                                                              \
    REGKERNELS_FORMULA(KERNEL, L0Value), REGKERNELS_FORMULA(KERNEL, LHalfValue),                 \
        REGKERNELS_FORMULA(KERNEL, FoldedConcaveValue), REGKERNELS_FORMULA(KERNEL, LogSumValue), \
        REGKERNELS_FORMULA(KERNEL, HuberValue)
#define REGKERNELS_DTYPES(KERNEL) KERNEL<Float64>, KERNEL<Float32>, KERNEL<Float16>, KERNEL<BFloat16>
#define REGKERNELS_STRING(X) #X
#define REGKERNELS_NAME(X) REGKERNELS_STRING(X)
#define REGKERNELS_JOIN(A, B) A##B
#define REGKERNELS_ACCESSOR(TARGET) REGKERNELS_JOIN(kernels_, TARGET)

constexpr Kernels kTable = {
    REGKERNELS_NAME(REGKERNELS_TARGET),
    {REGKERNELS_RULES(false)},
    {REGKERNELS_RULES(true)},
    {REGKERNELS_GROUPS(SGD), REGKERNELS_GROUPS(Momentum), REGKERNELS_GROUPS(Adam), REGKERNELS_GROUPS(AMSGrad),
     REGKERNELS_GROUPS(RMSprop), REGKERNELS_GROUPS(RMSpropMomentum), REGKERNELS_GROUPS(RMSpropCentered),
     REGKERNELS_GROUPS(RMSpropCenteredMomentum), REGKERNELS_GROUPS(Adagrad), REGKERNELS_GROUPS(Lion),
     REGKERNELS_GROUPS(Still)},
    {REGKERNELS_DTYPES(reduce)},
    {REGKERNELS_DTYPES(penalty_gradient)},
    {REGKERNELS_DTYPES(shrink)},
    {REGKERNELS_METRIC(Constant), REGKERNELS_METRIC(Root), REGKERNELS_METRIC(Centered), REGKERNELS_METRIC(Reciprocal),
     REGKERNELS_METRIC(Direct)},
    {REGKERNELS_FORMULAS(value)},
    {REGKERNELS_FORMULAS(slope)},
    {REGKERNELS_DTYPES(weighted_value)},
    {REGKERNELS_DTYPES(weighted_slope)},
    {REGKERNELS_DTYPES(group_squares)},
    {REGKERNELS_DTYPES(group_scale)},
};

}  // namespace

const Kernels& REGKERNELS_ACCESSOR(REGKERNELS_TARGET)() { return kTable; }

}  // namespace regkernels
