// How groups of elements lie in a segment, and how they are cut into work.
//
// The order in which a group is summed is part of this, see group_sums in regkernels/reference/groups.py: no sum
// depends on how many threads there are, nor on which of the two ways below a group is updated.
#pragma once

#include "table.h"

namespace regkernels {

// A part of a block of rows: of each row the groups from `begin` to `end`, of their runs those elements.
struct Tile {
    int64_t row_begin, row_end;
    int64_t begin, end;  // more than strip() of them in no tile
    int64_t run_begin, run_end;
    int64_t piece;  // which sums of its groups it forms, of blocks * pieces
};

// What tasks that share groups hand to each other; numbers of the groups from `begin` on.
struct GroupWork {
    int64_t begin, end;
    double* shared;   // second moments
    double* kept;     // Shrinkage
    double* factor;   // of each
    double* divisor;  // group
    double* partial;  // sums: one row of numbers for each piece, for each of kSumsOfGroup
};

// How many sums a group may need at a time; see Squares in group_blocks.h.
constexpr int64_t kSumsOfGroup = 3;

// kWhole is all of the others, for groups that no other task works on.
enum GroupStage : int { kWhole, kObserve, kShare, kPropose, kShrinkGroups, kWrite, kCount };

namespace {

// Runs of a group are cut into pieces of so many elements. Groups of up to so many are updated by one task, in three
// passes of which the later ones find everything in the second-level cache.
constexpr int64_t kPieceOfRun = 65536;
// A group's runs are put together in at most so many blocks.
constexpr int64_t kBlocksOfRows = 64;
// Runs from this length on are worked on one at a time, which has no division and no root per element.
constexpr int64_t kLongRun = 128;
// Numbers of groups with shorter runs are kept for so many elements of a row at a time.
constexpr int64_t kStrip = 2048;

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// Element (o * groups + g) * inner + i belongs to group g: it is in its run o. No member is 0.
struct GroupLayout {
    explicit GroupLayout(const Segment& segment)
        : groups(segment.groups),
          inner(segment.inner),
          outer(segment.numel / (segment.groups * segment.inner)),
          rows(ceil_divide(outer, kBlocksOfRows)),
          blocks(ceil_divide(outer, rows)),
          pieces(ceil_divide(inner, kPieceOfRun)) {}

    int64_t groups, inner, outer;
    int64_t rows;    // that make a block
    int64_t blocks;  // of rows
    int64_t pieces;  // of a run

    int64_t size() const { return outer * inner; }
    int64_t numel() const { return outer * groups * inner; }
    bool has_long_runs() const { return inner >= kLongRun; }
    // Groups that are worked on together, pass by pass. Of long runs side by side they are more than the first-level
    // cache holds: memory is fetched ahead where it is read in order, and not across the beginning of each run.
    int64_t strip() const {
        const int64_t groups_of_strip = (outer == 1 ? 4 : 1) * kStrip / inner;
        return has_long_runs() ? larger(1, smaller(groups_of_strip, kStrip / kLongRun)) : kStrip / inner;
    }
    // Whether one task updates whole groups. Few runs are read side by side; many would need too many pages and, as
    // their distance often is a power of two, the same few places of a cache.
    bool is_local() const { return numel() <= kPieceOfRun || (outer <= kBlocksOfRows && size() <= kPieceOfRun); }
};

}  // namespace
}  // namespace regkernels
