// One pass over a part of a segment whose elements form groups: what the second moments will be, where the step leads
// to, or the step again, whose outcome is shrunk and stored.
//
// Nothing is written before the last one, so no format of weights or states needs a copy of them; what a pass does not
// use is not computed.
#pragma once

#include "blocks.h"
#include "group_blocks.h"
#include "group_sums.h"

namespace regkernels {
namespace {

// Numbers of the groups of a tile: one for each element of a row or, where runs are long, for each group.
template <class C>
struct GroupNumbers {
    C mean[kStrip], step[kStrip];  // of each group: its second moment, and the step it makes
    C shared[kStrip], threshold[kStrip], kept[kStrip], factor[kStrip], divisor[kStrip];
    bool keeps = false, divides = false;
};

constexpr double kInfinity = __builtin_inf();

struct StepSums {
    WeightLanes<true> weight;
    GradientLanes gradient;
};

template <class T>
struct GroupPass {
    using C = typename T::Compute;
    static constexpr bool kWide = sizeof(typename T::Storage) == sizeof(C);

    const Segment& segment;
    const Hyper& hyper;
    const GroupLayout layout;
    const Kind kind;
    const GroupBlocks<C>& rule;
    const bool shares;  // second moments
    const Row<C> row;
    const OfNorm<C> of_norm;
    const bool has_sums;
    const bool changes_gradient, has_threshold;
    const bool limits;  // what is taken from a group, of which the threshold takes a part

    GroupPass(const Segment& segment, const Hyper& hyper, bool has_sums)
        : segment(segment),
          hyper(hyper),
          layout(segment),
          kind(segment.kind),
          rule(kGroupBlocks<C>[kind.rule]),
          shares(rule.step_per_element),
          row(row_for<C>(hyper, shares)),
          of_norm(of_norm_of(hyper, static_cast<double>(layout.size()), row)),
          has_sums(has_sums),
          changes_gradient(row.scale != 1 || row.coupled_decay != 0 || row.subgradient != 0),
          has_threshold(thresholds(row) || hyper.lower > -kInfinity || hyper.upper < kInfinity),
          limits(has_threshold && of_norm.largest_shrink < C(kInfinity)) {}

    static OfNorm<C> of_norm_of(const Hyper& hyper, double size, const Row<C>& row) {
        const double root = square_root(size);
        const bool is_limited = row.largest_shrink < C(kInfinity);
        return {C(hyper.group_strength * (hyper.group_by_size != 0 ? root : 1.0)),
                C(is_limited ? hyper.largest_shrink * root : kInfinity)};
    }

    bool updates_states() const { return hyper.skip == 0; }
    bool updates_weights() const { return hyper.skip == 0 && row.lr != 0; }

    // Calls body(first element, its place, elements, first group, where its numbers are) for each block of a tile;
    // groups count from where the tile begins.
    template <class Body>
    void for_blocks(const Tile& tile, const Body& body) const {
        const bool is_long = layout.has_long_runs();
        const int64_t groups = is_long ? 1 : kBlock / layout.inner;
        for (int64_t o = tile.row_begin; o < tile.row_end; ++o) {
            const int64_t elsewhere = segment.place + o * segment.gap;
            for (int64_t g = tile.begin; g < tile.end; g += groups) {
                const int64_t first = (o * layout.groups + g) * layout.inner, group = g - tile.begin;
                if (is_long) {
                    for (int64_t i = tile.run_begin; i < tile.run_end; i += kBlock)
                        body(first + i, elsewhere + first + i, smaller(kBlock, tile.run_end - i), group, group);
                } else {
                    body(first, elsewhere + first, smaller(groups, tile.end - g) * layout.inner, group,
                         group * layout.inner);
                }
            }
        }
    }

    // How many sums of each group a pass forms: those of Squares, or one.
    template <GroupStage kStage>
    int sums_of_pass() const {
        return kStage == kPropose && limits ? kSumsOfGroup : 1;
    }

    // One pass over a tile, adding to the sums of its groups: of second moments (kObserve), of squares of where the
    // step leads to (kPropose), of absolute values of what was stored (kWrite, where sums are asked for).
    template <GroupStage kStage>
    __attribute__((noinline)) void pass(const Tile& tile, const GroupNumbers<C>& numbers, GroupLanes* lanes,
                                        StepSums* sums) const {
        WeightBlock<T, kWide> weight;
        StateBlocks<C> states;
        C wide_gradient[kWide ? 1 : kBlock], ready_gradient[kBlock], scratch[kBlock], taken[kBlock];
        double both[kBlock];
        Random random;
        const bool is_long = layout.has_long_runs();
        for_blocks(tile, [&](int64_t first, int64_t place, int64_t numel, int64_t group, int64_t position) {
            random.place = place;
            const C* gradient = wide_gradient;
            if constexpr (kWide) {
                gradient = at<const C>(segment.gradient, first);
            } else {
                widen<T>(at<const uint16_t>(segment.gradient, first), wide_gradient, numel);
            }
            if (sums) add_run(sums->gradient, gradient, numel);
            weight.load(segment, kind.rounding, first, numel);
            if (updates_states()) {
                states.load(segment, rule.states, kind.narrow, first, numel);
                if (changes_gradient) {
                    prepare_gradient(weight.values, gradient, ready_gradient, numel, row);
                    gradient = ready_gradient;
                }
                if constexpr (kStage == kObserve) {
                    rule.observe(gradient, states.values, scratch, numel, row);
                    lanes[0].template add<Itself>(scratch, numel, group, layout.inner);
                } else {
                    constexpr bool kStore = kStage == kWrite;
                    const bool uniform = !shares || is_long;
                    const C* shared = numbers.shared + (shares ? position : 0);
                    C* out = kStore && updates_weights() ? weight.values : scratch;
                    rule.propose[uniform][kStore](weight.values, gradient, states.values, shared, out, numel, row);
                    if (has_threshold) threshold(out, taken, numbers, position, numel);
                    if (!kStore) lanes[0].template add<Square>(scratch, numel, group, layout.inner);
                    if (!kStore && limits) {
                        multiply_block(taken, scratch, both, numel);
                        lanes[1].template add<Square>(taken, numel, group, layout.inner);
                        lanes[2].template add<Itself>(both, numel, group, layout.inner);
                    }
                }
                if constexpr (kStage == kWrite) {
                    states.store(segment, rule.states, kind.narrow, first, numel, hyper, random);
                    if (updates_weights()) {
                        shrink(weight.values, taken, numbers, position, numel);
                        weight.store(segment, kind.rounding, first, numel, hyper, random);
                    }
                }
            }
            if (sums) {
                weight.reload(segment, first, numel);
                add_run(sums->weight, weight.values, numel);
                lanes[0].template add<Absolute>(weight.values, numel, group, layout.inner);
            }
        });
    }

    void threshold(C* z, C* taken, const GroupNumbers<C>& numbers, int64_t position, int64_t numel) const {
        if (!shares || layout.has_long_runs()) {
            const C* of_all = numbers.threshold + (shares ? position : 0);
            threshold_block<C, true>(z, taken, of_all, numel, row.lower, row.upper);
        } else {
            threshold_block<C, false>(z, taken, numbers.threshold + position, numel, row.lower, row.upper);
        }
    }

    void shrink(C* z, const C* taken, const GroupNumbers<C>& numbers, int64_t position, int64_t numel) const {
        const C *kept = numbers.kept + position, *factor = numbers.factor + position;
        const C* divisor = numbers.divisor + position;
        if (numbers.keeps && (!layout.has_long_runs() || kept[0] != 0)) {
            const auto keep = layout.has_long_runs() ? keep_block<C, true> : keep_block<C, false>;
            keep(z, taken, kept, factor, divisor, numel);
        } else if (!layout.has_long_runs()) {
            (numbers.divides ? shrink_block<C, false, true> : shrink_block<C, false, false>)(z, factor, divisor, numel);
        } else if (divisor[0] != 1 || factor[0] != 1) {
            (divisor[0] != 1 ? shrink_block<C, true, true> : shrink_block<C, true, false>)(z, factor, divisor, numel);
        }
    }

    // A number of a group, for each of its elements in a row.
    void spread(C* numbers, int64_t group, C number) const {
        if (layout.has_long_runs()) {
            numbers[group] = number;
        } else {
            for (int64_t i = 0; i < layout.inner; ++i) numbers[group * layout.inner + i] = number;
        }
    }

    // The second moments that groups share.
    void use_means(GroupNumbers<C>& numbers, int64_t groups) const {
        rule.steps(numbers.mean, numbers.step, groups, row);
        for (int64_t k = 0; k < groups; ++k) spread(numbers.shared, k, numbers.mean[k]);
        if (!has_threshold) return;
        for (int64_t k = 0; k < groups; ++k) {
            spread(numbers.threshold, k, threshold_of(numbers.step[k], row));
        }
    }

    // Where no second moment is shared.
    void use_none(GroupNumbers<C>& numbers) const {
        numbers.shared[0] = C(0);
        numbers.threshold[0] = row.threshold;
    }

    C mean(double sum) const { return C(sum / static_cast<double>(layout.size())); }

    C step_of(C shared) const {
        C step;
        rule.steps(&shared, &step, 1, row);
        return step;
    }

    // What is done to a group, for each of its elements in a row.
    void use(const Shrinkage<C>& of_group, GroupNumbers<C>& numbers, int64_t group) const {
        spread(numbers.kept, group, of_group.kept);
        spread(numbers.factor, group, of_group.factor);
        spread(numbers.divisor, group, of_group.divisor);
        numbers.keeps = numbers.keeps || of_group.kept != 0;
        numbers.divides = numbers.divides || of_group.divisor != 1;
    }
};

}  // namespace
}  // namespace regkernels
