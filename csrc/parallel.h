// Runs the kernels over tables of work, in one region of threads per call.
#pragma once

#include <vector>

#include "kernels.h"
#include "table.h"

namespace regkernels {

// `totals` (one per param group) is added to where it is not null.
void update(const Kernels&, const Segment*, int64_t segments, const Hyper*, Sums* totals);
Sums reduce(const Kernels&, const Run*, int64_t runs);
void penalty_gradient(const Kernels&, const Run*, int64_t runs, double absolute, double square);
void soft_threshold(const Kernels&, const Run*, int64_t runs, double threshold);
void proximal(const Kernels&, const Segment*, int64_t segments, const Hyper*);

double value(const Kernels&, const Run*, int64_t runs, int64_t formula, const Numbers&);
void slope(const Kernels&, const Run*, int64_t runs, int64_t formula, const Numbers&);
Weighted weighted_value(const Kernels&, const WeightedRun*, int64_t runs);
void weighted_slope(const Kernels&, const WeightedRun*, int64_t runs, double scale);
// The sum of the norms of each tensor.
std::vector<double> group_norms(const Kernels&, const GroupRun*, int64_t runs);
void group_scale(const Kernels&, const GroupRun*, int64_t runs);

}  // namespace regkernels
