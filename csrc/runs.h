// The tables of runs that Python hands to kernels which know nothing of optimizers, and the parts they are cut into.
#pragma once

#include <cstdint>

namespace regkernels {

// A contiguous run of weights.
struct Run {
    int64_t weight;
    int64_t out;  // unused by reduce
    int64_t numel;
    int64_t dtype;
};

// A contiguous run of weights with a number for each.
struct WeightedRun {
    int64_t weight;
    int64_t factors;  // in the compute type
    int64_t out;      // unused by weighted_value
    int64_t numel;
    int64_t dtype;
};

// Where a group's elements lie in memory: element (o * groups + g) * inner + i belongs to group g.
struct GroupShape {
    int64_t outer;
    int64_t groups;
    int64_t inner;
};

// A tensor of groups.
struct GroupRun {
    int64_t weight;
    int64_t out;      // unused by group_norms
    int64_t numbers;  // double, one per group: norms to be written, or factors to be read
    int64_t numel;
    int64_t dtype;
    GroupShape layout;
};

// A part of a tensor whose square sums are formed in one go: some groups, some of their runs, or a part of each run.
struct ValueTile {
    int64_t outer_begin, outer_end;
    int64_t group_begin, group_end;
    int64_t inner_begin, inner_end;
};

// The parameters of a penalty's value or of its slope, computed on the host in double.
struct Numbers {
    double first;
    double second;
    double third;
    double fourth;
};

// A sum over elements with weights of their own, and how many of these weights are not finite or negative.
struct Weighted {
    double sum;
    double refused;
};

}  // namespace regkernels
