// Soft-threshold and proximal decay in the metric of a step that has been made: reads the metric's operands and the
// weight, writes the weight. Same order of operations as regkernels/reference/metrics.py.
#pragma once

#include "blocks.h"
#include "metrics.h"
#include "shrink.h"

namespace regkernels {
namespace {

template <class C, template <class> class MetricOf, bool kShrink>
void proximal_block(C* __restrict weight, const C* __restrict first, const C* __restrict second, int64_t numel,
                    const Row<C>& row) {
    constexpr int kOperands = MetricOf<C>::kOperands;
    const Row<C> h = row;
#pragma omp simd
    for (int64_t i = 0; i < numel; ++i) {
        const C s = MetricOf<C>::step(kOperands > 0 ? first[i] : C(0), kOperands > 1 ? second[i] : C(0), h);
        weight[i] = proximal_step<true, true, kShrink>(weight[i], s, h);
    }
}

// An operand of half-precision weights, in the weights' own type or in float32; others are in the weights' type.
template <class T>
struct Operand {
    using C = typename T::Compute;
    static constexpr bool kWide = sizeof(typename T::Storage) == sizeof(C);
    C wide[kWide ? 1 : kBlock];

    const C* load(int64_t address, bool narrow, int64_t first, int64_t numel) {
        if constexpr (!kWide) {
            if (narrow) {
                widen<T>(at<const uint16_t>(address, first), wide, numel);
                return wide;
            }
        }
        return at<const C>(address, first);
    }
};

// What takes an instance per metric.
template <class C>
struct MetricBlocks {
    int operands;
    void (*proximal[2])(C*, const C*, const C*, int64_t, const Row<C>&);  // without and with a decay
};

#define REGKERNELS_METRIC_BLOCKS(NAME, METRIC) \
    {METRIC<C>::kOperands, {proximal_block<C, METRIC, false>, proximal_block<C, METRIC, true>}},
template <class C>
constexpr MetricBlocks<C> kMetricBlocks[] = {REGKERNELS_METRICS(REGKERNELS_METRIC_BLOCKS)};

// Elements [begin, end) of a segment, whose operands are in the place of states.
template <class T>
void proximal(const Segment& segment, int64_t begin, int64_t end, const Hyper& hyper) {
    using C = typename T::Compute;
    const ProximalKind kind(segment.kind);
    const MetricBlocks<C>& metric = kMetricBlocks<C>[kind.metric];
    const Row<C> row(hyper);
    if (hyper.skip != 0 || row.lr == 0) return;
    const auto block = metric.proximal[divides(row)];

    WeightBlock<T, Operand<T>::kWide> weight;
    Operand<T> operands[2];
    Random random;
    for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t numel = end - i < kBlock ? end - i : kBlock;
        const C* values[2] = {};
        weight.load(segment, kNearest, i, numel);
        for (int k = 0; k < metric.operands; ++k) values[k] = operands[k].load(segment.state[k], kind.narrow, i, numel);
        block(weight.values, values[0], values[1], numel, row);
        weight.store(segment, kNearest, i, numel, hyper, random);
    }
}

}  // namespace
}  // namespace regkernels
