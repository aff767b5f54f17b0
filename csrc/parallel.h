// Runs the kernels over tables of work, in one OpenMP region per call.
#pragma once

#include "kernels.h"
#include "table.h"

namespace regkernels {

// A contiguous run of weights for the kernels that know nothing of optimizers.
struct Run {
    int64_t weight;
    int64_t out;  // unused by reduce
    int64_t numel;
    int64_t dtype;
};

// `totals` (one per param group) is added to where it is not null.
void update(const Kernels&, const Segment*, int64_t segments, const Hyper*, Sums* totals);
Sums reduce(const Kernels&, const Run*, int64_t runs);
void penalty_gradient(const Kernels&, const Run*, int64_t runs, double absolute, double square);
void soft_threshold(const Kernels&, const Run*, int64_t runs, double threshold);
void proximal(const Kernels&, const Segment*, int64_t segments, const Hyper*);

// Threads that the next region would use, as set by torch.set_num_threads.
int num_threads();

}  // namespace regkernels
