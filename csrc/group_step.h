// The step of groups of elements.
//
// Three passes, between which sums over groups are formed: what the second moments will be, where the step leads to,
// and the step again, whose outcome is shrunk and stored. Nothing is written before the last one, so no format of
// weights or states needs a copy of them; what a pass does not use is not computed.
#pragma once

#include "group_pass.h"

namespace regkernels {
namespace {

template <class T>
struct GroupStep : GroupPass<T> {
    using Pass = GroupPass<T>;
    using Pass::has_sums, Pass::layout, Pass::mean, Pass::shares, Pass::shrinkage_of, Pass::spread, Pass::step_of;
    using Pass::Pass;
    using Pass::updates_states, Pass::updates_weights, Pass::use_means, Pass::use_none;
    using typename Pass::C;

    // The sums of all groups of a strip, of whole groups: over all blocks of rows.
    template <GroupStage kStage>
    void whole_pass(int64_t begin, int64_t end, const GroupNumbers<C>& numbers, GroupLanes& lanes, double* totals,
                    StepSums* sums) const {
        for (int64_t g = 0; g < end - begin; ++g) totals[g] = 0;
        for (int64_t o = 0; o < layout.outer; o += layout.rows) {
            lanes.clear(end - begin);
            const Tile tile = {o, smaller(o + layout.rows, layout.outer), begin, end, 0, layout.inner, 0};
            this->template pass<kStage>(tile, numbers, lanes, sums);
            lanes.add_to(totals, end - begin);
        }
    }

    // All of the groups from `begin` to `end`.
    void whole(int64_t begin, int64_t end, Sums* sums) const {
        GroupNumbers<C> numbers;
        GroupLanes lanes(layout);
        double totals[kStrip];
        StepSums step_sums = {};
        use_none(numbers);
        const C step_of_all = step_of(C(0));  // where no second moment is shared
        for (int64_t g = begin; g < end; g += layout.strip()) {
            const int64_t last = smaller(g + layout.strip(), end), groups = last - g;
            if (shares && updates_states()) {
                whole_pass<kObserve>(g, last, numbers, lanes, totals, nullptr);
                for (int64_t k = 0; k < groups; ++k) numbers.mean[k] = mean(totals[k]);
                use_means(numbers, groups);
            }
            if (updates_weights()) {
                whole_pass<kPropose>(g, last, numbers, lanes, totals, nullptr);
                numbers.divides = false;
                for (int64_t k = 0; k < groups; ++k) {
                    C factor, divisor;
                    shrinkage_of(totals[k], shares ? numbers.step[k] : step_of_all, factor, divisor);
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
        StepSums step_sums = {};
        use_none(numbers);
        lanes.clear(tile.end - tile.begin);
        if (kStage != kObserve && shares) {
            for (int64_t g = tile.begin; g < tile.end; ++g)
                numbers.mean[g - tile.begin] = C(work.shared[g - work.begin]);
            use_means(numbers, tile.end - tile.begin);
        }
        if (kStage == kWrite && updates_weights()) {
            for (int64_t g = tile.begin; g < tile.end; ++g) {
                spread(numbers.factor, g - tile.begin, C(work.factor[g - work.begin]));
                spread(numbers.divisor, g - tile.begin, C(work.divisor[g - work.begin]));
                numbers.divides = numbers.divides || work.divisor[g - work.begin] != 1;
            }
        }
        this->template pass<kStage>(tile, numbers, lanes, kStage == kWrite && has_sums ? &step_sums : nullptr);
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
                if (shares && updates_states()) tile_pass<kObserve>(tile, *work, sums);
                break;
            case kShare:
                if (shares && updates_states())
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
                        const C shared = shares ? C(work->shared[g - work->begin]) : C(0);
                        shrinkage_of(total(g, *work), step_of(shared), factor, divisor);
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

template <class T>
void update_groups(GroupStage stage, const Segment& segment, const Tile& tile, const Hyper& hyper,
                   const GroupWork* work, Sums* sums) {
    GroupStep<T>(segment, hyper, sums != nullptr).stage(stage, tile, work, sums);
}

}  // namespace
}  // namespace regkernels
