// The hyper-parameters as kernels read them: in the compute type, each rounded once.
#pragma once

#include "table.h"

namespace regkernels {
namespace {

#define REGKERNELS_ROW_NUMBER(NAME) C NAME;
#define REGKERNELS_ROW_FLAG(NAME) bool NAME;
#define REGKERNELS_ROUND(NAME) NAME = C(hyper.NAME);
#define REGKERNELS_TEST(NAME) NAME = hyper.NAME != 0;
#define REGKERNELS_NOTHING(NAME)

template <class C>
struct Row {
    explicit Row(const Hyper& hyper){REGKERNELS_HYPER(REGKERNELS_ROUND, REGKERNELS_TEST, REGKERNELS_NOTHING)}

    REGKERNELS_HYPER(REGKERNELS_ROW_NUMBER, REGKERNELS_ROW_FLAG, REGKERNELS_NOTHING)
};

// For a rule without a step of its own per element, which knows no multiples of one, and no limit.
template <class C>
inline Row<C> row_for(const Hyper& hyper, bool step_per_element) {
    Row<C> row(hyper);
    if (!step_per_element) {
        row.threshold_per_step = row.shrink_per_step = C(0);
        row.largest_shrink = C(__builtin_inf());
    }
    return row;
}

}  // namespace
}  // namespace regkernels
