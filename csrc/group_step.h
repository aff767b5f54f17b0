// The step of groups of elements.
//
// Three passes, between which sums over groups are formed: what the second moments will be, where the step leads to,
// and the step again, whose outcome is shrunk and stored. Nothing is written before the last one, so no format of
// weights or states needs a copy of them; what a pass does not use is not computed.
#pragma once

#include "blocks.h"
#include "group_sums.h"
#include "groups.h"

namespace regkernels {
namespace {

// Numbers of the groups of a tile: one for each element of a row or, where runs are long, for each group.
template <class C>
struct GroupNumbers {
    C shared[kStrip], threshold[kStrip], factor[kStrip], divisor[kStrip];
    bool divides = false;
};

constexpr double kInfinity = __builtin_inf();

struct StepSums {
    WeightLanes<true> weight;
    GradientLanes gradient;
};

template <class T, template <class> class RuleOf>
struct GroupStep {
    using C = typename T::Compute;
    static constexpr int kStates = RuleOf<C>::kStates;
    static constexpr bool kStepPerElement = RuleOf<C>::kStepPerElement;
    static constexpr bool kWide = sizeof(typename T::Storage) == sizeof(C);

    const Segment& segment;
    const Hyper& hyper;
    const GroupLayout layout;
    const Kind kind;
    const Row<C> row;
    const C group_strength;
    const bool has_sums;
    const bool changes_gradient, has_threshold;

    GroupStep(const Segment& segment, const Hyper& hyper, bool has_sums)
        : segment(segment),
          hyper(hyper),
          layout(segment),
          kind(segment.kind),
          row(hyper),
          group_strength(C(hyper.group_strength *
                           (hyper.group_by_size != 0 ? square_root(static_cast<double>(layout.size())) : 1.0))),
          has_sums(has_sums),
          changes_gradient(row.scale != 1 || row.coupled_decay != 0 || row.subgradient != 0),
          has_threshold(row.threshold != 0 || row.threshold_per_step != 0 || hyper.lower > -kInfinity ||
                        hyper.upper < kInfinity) {}

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

    // One pass over a tile, adding to the sums of its groups: of second moments (kObserve), of squares of where the
    // step leads to (kPropose), of absolute values of what was stored (kWrite, where sums are asked for).
    template <GroupStage kStage>
    __attribute__((noinline)) void pass(const Tile& tile, const GroupNumbers<C>& numbers, GroupLanes& lanes,
                                        StepSums* sums) const {
        WeightBlock<T, kWide> weight;
        StateBlock<C> states[kStates > 0 ? kStates : 1];
        C wide_gradient[kWide ? 1 : kBlock], ready_gradient[kBlock], scratch[kBlock];
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
                C* values[3] = {};
                for (int k = 0; k < kStates; ++k) {
                    states[k].load(segment, k, kind.narrow, first, numel);
                    values[k] = states[k].values;
                }
                if (changes_gradient) {
                    prepare_gradient(weight.values, gradient, ready_gradient, numel, row);
                    gradient = ready_gradient;
                }
                if constexpr (kStage == kObserve) {
                    observe_block<C, RuleOf>(gradient, values, scratch, numel, row);
                    lanes.add<Itself>(scratch, numel, group, layout.inner);
                } else {
                    constexpr bool kStore = kStage == kWrite;
                    const C* shared = numbers.shared + (kStepPerElement ? position : 0);
                    C* out = kStore && updates_weights() ? weight.values : scratch;
                    if (!kStepPerElement || is_long) {
                        propose_groups<C, RuleOf, true, kStore>(weight.values, gradient, values, shared, out, numel,
                                                                row);
                    } else if constexpr (kStepPerElement) {
                        propose_groups<C, RuleOf, false, kStore>(weight.values, gradient, values, shared, out, numel,
                                                                 row);
                    }
                    if (has_threshold) threshold(out, numbers, position, numel);
                    if (!kStore) lanes.add<Square>(scratch, numel, group, layout.inner);
                }
                if constexpr (kStage == kWrite) {
                    for (int k = 0; k < kStates; ++k)
                        states[k].store(segment, k, kind.narrow, first, numel, hyper, random);
                    if (updates_weights()) {
                        shrink(weight.values, numbers, position, numel);
                        weight.store(segment, kind.rounding, first, numel, hyper, random);
                    }
                }
            }
            if (sums) {
                weight.reload(segment, first, numel);
                add_run(sums->weight, weight.values, numel);
                lanes.add<Absolute>(weight.values, numel, group, layout.inner);
            }
        });
    }

    void threshold(C* z, const GroupNumbers<C>& numbers, int64_t position, int64_t numel) const {
        if (!kStepPerElement || layout.has_long_runs()) {
            threshold_block<C, true>(z, numbers.threshold + (kStepPerElement ? position : 0), numel, row.lower,
                                     row.upper);
        } else {
            threshold_block<C, false>(z, numbers.threshold + position, numel, row.lower, row.upper);
        }
    }

    void shrink(C* z, const GroupNumbers<C>& numbers, int64_t position, int64_t numel) const {
        const C *factor = numbers.factor + position, *divisor = numbers.divisor + position;
        if (!layout.has_long_runs()) {
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

    void use_shared(GroupNumbers<C>& numbers, int64_t group, C shared) const {
        spread(numbers.shared, group, shared);
        if (has_threshold) spread(numbers.threshold, group, threshold_of<C, RuleOf>(shared, row));
    }

    // Where no second moment is shared.
    void use_none(GroupNumbers<C>& numbers) const {
        numbers.shared[0] = C(0);
        numbers.threshold[0] = row.threshold;
    }

    C mean(double sum) const { return C(sum / static_cast<double>(layout.size())); }

    void shrinkage_of(double square_sum, C shared, C& factor, C& divisor) const {
        shrinkage<C, RuleOf>(C(square_root(square_sum)), shared, group_strength, row, factor, divisor);
    }

    // The sums of all groups of a strip, of whole groups: over all blocks of rows.
    template <GroupStage kStage>
    void whole_pass(int64_t begin, int64_t end, const GroupNumbers<C>& numbers, GroupLanes& lanes, double* totals,
                    StepSums* sums) const {
        for (int64_t g = 0; g < end - begin; ++g) totals[g] = 0;
        for (int64_t o = 0; o < layout.outer; o += layout.rows) {
            lanes.clear(end - begin);
            const Tile tile = {o, smaller(o + layout.rows, layout.outer), begin, end, 0, layout.inner, 0};
            pass<kStage>(tile, numbers, lanes, sums);
            lanes.add_to(totals, end - begin);
        }
    }

    // All of the groups from `begin` to `end`.
    void whole(int64_t begin, int64_t end, Sums* sums) const {
        GroupNumbers<C> numbers;
        GroupLanes lanes(layout);
        double totals[kStrip];
        StepSums step_sums;
        use_none(numbers);
        for (int64_t g = begin; g < end; g += layout.strip()) {
            const int64_t last = smaller(g + layout.strip(), end), groups = last - g;
            if (kStepPerElement && updates_states()) {
                whole_pass<kObserve>(g, last, numbers, lanes, totals, nullptr);
                for (int64_t k = 0; k < groups; ++k) use_shared(numbers, k, mean(totals[k]));
            }
            if (updates_weights()) {
                whole_pass<kPropose>(g, last, numbers, lanes, totals, nullptr);
                numbers.divides = false;
                for (int64_t k = 0; k < groups; ++k) {
                    C factor, divisor;
                    const int64_t place = layout.has_long_runs() ? k : k * layout.inner;
                    const C shared = numbers.shared[kStepPerElement ? place : 0];
                    shrinkage_of(totals[k], shared, factor, divisor);
                    spread(numbers.factor, k, factor);
                    spread(numbers.divisor, k, divisor);
                    numbers.divides = numbers.divides || divisor != 1;
                }
            }
            if (updates_states() || has_sums)
                whole_pass<kWrite>(g, last, numbers, lanes, totals, has_sums ? &step_sums : nullptr);
            if (has_sums)
                for (int64_t k = 0; k < groups; ++k) sums->zero_groups += totals[k] == 0;
        }
        if (has_sums) finish_sums(step_sums, sums);
    }

    void finish_sums(const StepSums& step_sums, Sums* sums) const {
        finish(step_sums.weight, sums);
        finish(step_sums.gradient, sums);
    }

    // --- groups that several tasks work on: a pass over one tile, and what is between passes ---

    template <GroupStage kStage>
    void tile_pass(const Tile& tile, const GroupWork& work, Sums* sums) const {
        GroupNumbers<C> numbers;
        GroupLanes lanes(layout);
        StepSums step_sums;
        use_none(numbers);
        lanes.clear(tile.end - tile.begin);
        if (kStage != kObserve) {
            for (int64_t g = tile.begin; g < tile.end; ++g) {
                if (kStepPerElement) use_shared(numbers, g - tile.begin, C(work.shared[g - work.begin]));
                if (kStage == kWrite && updates_weights()) {
                    spread(numbers.factor, g - tile.begin, C(work.factor[g - work.begin]));
                    spread(numbers.divisor, g - tile.begin, C(work.divisor[g - work.begin]));
                    numbers.divides = numbers.divides || work.divisor[g - work.begin] != 1;
                }
            }
        }
        pass<kStage>(tile, numbers, lanes, kStage == kWrite && has_sums ? &step_sums : nullptr);
        double* partial = work.partial + tile.piece * (work.end - work.begin) + tile.begin - work.begin;
        for (int64_t g = 0; g < tile.end - tile.begin; ++g) partial[g] = 0;
        lanes.add_to(partial, tile.end - tile.begin);
        if (kStage == kWrite && has_sums) finish_sums(step_sums, sums);
    }

    double total(int64_t group, const GroupWork& work) const {
        double sum = 0;
        for (int64_t piece = 0; piece < layout.blocks * layout.pieces; ++piece)
            sum += work.partial[piece * (work.end - work.begin) + group - work.begin];
        return sum;
    }

    void stage(GroupStage stage, const Tile& tile, const GroupWork* work, Sums* sums) const {
        switch (stage) {
            case kWhole:
                whole(tile.begin, tile.end, sums);
                break;
            case kObserve:
                if (kStepPerElement && updates_states()) tile_pass<kObserve>(tile, *work, sums);
                break;
            case kShare:
                if (kStepPerElement && updates_states())
                    for (int64_t g = tile.begin; g < tile.end; ++g)
                        work->shared[g - work->begin] = mean(total(g, *work));
                break;
            case kPropose:
                if (updates_weights()) tile_pass<kPropose>(tile, *work, sums);
                break;
            case kShrinkGroups:
                if (updates_weights()) {
                    for (int64_t g = tile.begin; g < tile.end; ++g) {
                        C factor, divisor;
                        const C shared = kStepPerElement ? C(work->shared[g - work->begin]) : C(0);
                        shrinkage_of(total(g, *work), shared, factor, divisor);
                        work->factor[g - work->begin] = factor;
                        work->divisor[g - work->begin] = divisor;
                    }
                }
                break;
            case kWrite:
                if (updates_states() || has_sums) tile_pass<kWrite>(tile, *work, sums);
                break;
            case kCount:
                if (has_sums)
                    for (int64_t g = tile.begin; g < tile.end; ++g) sums->zero_groups += total(g, *work) == 0;
        }
    }
};

template <class T, template <class> class RuleOf>
void update_groups(GroupStage stage, const Segment& segment, const Tile& tile, const Hyper& hyper,
                   const GroupWork* work, Sums* sums) {
    GroupStep<T, RuleOf>(segment, hyper, sums != nullptr).stage(stage, tile, work, sums);
}

}  // namespace
}  // namespace regkernels
