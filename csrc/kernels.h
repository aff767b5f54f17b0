// What each instruction set offers: one table of function pointers per copy of kernels.cpp.
#pragma once

#include "grouping.h"
#include "runs.h"
#include "table.h"

namespace regkernels {

// Those for weights of one dtype.
struct DtypeKernels {
    // Elements [begin, end) of one segment of this kind; adds to `sums` where it is not null.
    void (*update)(const Segment&, const Kind&, int64_t begin, int64_t end, const Hyper&, Sums* sums);
    // A stage of the update of groups; `work` is null for whole groups.
    void (*update_groups)(GroupStage, const Segment&, const Tile&, const Hyper&, const GroupWork* work, Sums*);
    // Elements [begin, end) of one segment, whose operands are in the place of states; its kind is a ProximalKind.
    void (*proximal)(const Segment&, int64_t begin, int64_t end, const Hyper&);
    // Sums of |w| and w^2 of a contiguous run.
    void (*reduce)(const void* weight, int64_t numel, Sums* sums);
    // out = absolute * sign(w) + square * w
    void (*penalty_gradient)(const void* weight, void* out, int64_t numel, double absolute, double square);
    // out = soft_threshold(in, threshold); in and out may be the same memory.
    void (*soft_threshold)(const void* in, void* out, int64_t numel, double threshold);
    // The sum of a penalty's terms over a contiguous run, added to `sum`.
    void (*value)(const void* weight, int64_t numel, int64_t formula, const Numbers&, double* sum);
    // out = the gradient of a penalty; in and out may be the same memory.
    void (*slope)(const void* weight, void* out, int64_t numel, int64_t formula, const Numbers&);
    // Sum of factor * |w|, with factors in the compute type.
    void (*weighted_value)(const void* weight, const void* factors, int64_t numel, Weighted* total);
    // out = scale * factor * sign(w)
    void (*weighted_slope)(const void* weight, const void* factors, void* out, int64_t numel, double scale);
    // One square sum per group of the tile.
    void (*group_squares)(const void* weight, const GroupShape&, const ValueTile&, double* sums);
    // Elements [begin, end) of a tensor: out = factor of the group * w
    void (*group_scale)(const void* weight, void* out, int64_t begin, int64_t end, const GroupShape&,
                        const double* factors);
};

struct Kernels {
    const char* name;
    DtypeKernels of[kDtypes];
};

const Kernels& kernels_baseline();
#ifdef REGKERNELS_HAVE_AVX2
const Kernels& kernels_avx2();
#endif
#ifdef REGKERNELS_HAVE_AVX512
const Kernels& kernels_avx512();
#endif

}  // namespace regkernels
