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
    using Pass::has_sums, Pass::layout, Pass::limits, Pass::mean, Pass::of_norm, Pass::row, Pass::shares;
    using Pass::Pass;
    using Pass::updates_states, Pass::updates_weights, Pass::use, Pass::use_means, Pass::use_none, Pass::step_of;
    using typename Pass::C;
    using Totals = double[kSumsOfGroup][kStrip];

    // The sums of all groups of a strip, of whole groups: over all blocks of rows.
    template <GroupStage kStage>
    void whole_pass(int64_t begin, int64_t end, const GroupNumbers<C>& numbers, GroupLanes* lanes, Totals& totals,
                    StepSums* sums) const {
        const int count = this->template sums_of_pass<kStage>();
        for (int k = 0; k < count; ++k)
            for (int64_t g = 0; g < end - begin; ++g) totals[k][g] = 0;
        for (int64_t o = 0; o < layout.outer; o += layout.rows) {
            for (int k = 0; k < count; ++k) lanes[k].clear(end - begin);
            const Tile tile = {o, smaller(o + layout.rows, layout.outer), begin, end, 0, layout.inner, 0};
            this->template pass<kStage>(tile, numbers, lanes, sums);
            for (int k = 0; k < count; ++k) lanes[k].add_to(totals[k], end - begin);
        }
    }

    // All of the groups from `begin` to `end`.
    void whole(int64_t begin, int64_t end, Sums* sums) const {
        GroupNumbers<C> numbers;
        GroupLanes lanes[kSumsOfGroup] = {GroupLanes(layout), GroupLanes(layout), GroupLanes(layout)};
        Totals totals;
        StepSums step_sums = {};
        use_none(numbers);
        const C step_of_all = step_of(C(0));  // where no second moment is shared
        for (int64_t g = begin; g < end; g += layout.strip()) {
            const int64_t last = smaller(g + layout.strip(), end), groups = last - g;
            if (shares && updates_states()) {
                whole_pass<kObserve>(g, last, numbers, lanes, totals, nullptr);
                for (int64_t k = 0; k < groups; ++k) numbers.mean[k] = mean(totals[0][k]);
                use_means(numbers, groups);
            }
            if (updates_weights()) {
                whole_pass<kPropose>(g, last, numbers, lanes, totals, nullptr);
                numbers.keeps = numbers.divides = false;
                for (int64_t k = 0; k < groups; ++k) {
                    const Squares squares = {totals[0][k], limits ? totals[1][k] : 0, limits ? totals[2][k] : 0};
                    use(shrinkage(squares, shares ? numbers.step[k] : step_of_all, of_norm, row), numbers, k);
                }
            }
            if (updates_states() || has_sums)
                whole_pass<kWrite>(g, last, numbers, lanes, totals, has_sums ? &step_sums : nullptr);
            if (has_sums)
                for (int64_t k = 0; k < groups; ++k) sums->zero_groups += totals[0][k] == 0;
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
        GroupLanes lanes[kSumsOfGroup] = {GroupLanes(layout), GroupLanes(layout), GroupLanes(layout)};
        StepSums step_sums = {};
        const int count = this->template sums_of_pass<kStage>();
        use_none(numbers);
        for (int k = 0; k < count; ++k) lanes[k].clear(tile.end - tile.begin);
        if (kStage != kObserve && shares) {
            for (int64_t g = tile.begin; g < tile.end; ++g)
                numbers.mean[g - tile.begin] = C(work.shared[g - work.begin]);
            use_means(numbers, tile.end - tile.begin);
        }
        if (kStage == kWrite && updates_weights()) {
            for (int64_t g = tile.begin; g < tile.end; ++g) {
                const int64_t k = g - work.begin;
                use({C(work.kept[k]), C(work.factor[k]), C(work.divisor[k])}, numbers, g - tile.begin);
            }
        }
        this->template pass<kStage>(tile, numbers, lanes, kStage == kWrite && has_sums ? &step_sums : nullptr);
        for (int k = 0; k < count; ++k) {
            double* partial = partials(work, k, tile.piece) + tile.begin - work.begin;
            for (int64_t g = 0; g < tile.end - tile.begin; ++g) partial[g] = 0;
            lanes[k].add_to(partial, tile.end - tile.begin);
        }
        if (kStage == kWrite && has_sums) finish_sums(step_sums, sums);
    }

    // What a piece adds to sum k of the groups of a work.
    double* partials(const GroupWork& work, int k, int64_t piece) const {
        return work.partial + (k * layout.blocks * layout.pieces + piece) * (work.end - work.begin);
    }

    double total(int64_t group, const GroupWork& work, int k = 0) const {
        double sum = 0;
        for (int64_t piece = 0; piece < layout.blocks * layout.pieces; ++piece)
            sum += partials(work, k, piece)[group - work.begin];
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
                        const C shared = shares ? C(work->shared[g - work->begin]) : C(0);
                        const Squares squares = {total(g, *work), limits ? total(g, *work, 1) : 0,
                                                 limits ? total(g, *work, 2) : 0};
                        const Shrinkage<C> of_group = shrinkage(squares, step_of(shared), of_norm, row);
                        work->kept[g - work->begin] = of_group.kept;
                        work->factor[g - work->begin] = of_group.factor;
                        work->divisor[g - work->begin] = of_group.divisor;
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
