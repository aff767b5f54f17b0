// The kernels. This file is compiled once per instruction set, with REGKERNELS_TARGET naming it.
//
// Everything but the one accessor at the end has internal linkage, and nothing of the standard library's templates is
// used: the linker merges equal functions of all copies, and one that came from the AVX-512 copy would crash elsewhere.
#include "kernels.h"

#include "group_step.h"
#include "group_values.h"
#include "map.h"
#include "proximal.h"
#include "step.h"
#include "values.h"

namespace regkernels {
namespace {

template <class T>
void reduce(const void* weight, int64_t numel, Sums* sums) {
    WeightLanes<false> lanes = {};
    add<T>(lanes, static_cast<const typename T::Storage*>(weight), numel);
    finish(lanes, sums);
}

template <class T>
void penalty_gradient(const void* weight, void* out, int64_t numel, double absolute, double square) {
    using C = typename T::Compute;
    const C a = C(absolute), b = C(square);
    map<T>(weight, out, numel, [a, b](C w) {
        const C gradient = a * sign(w);
        return b != 0 ? gradient + b * w : gradient;  // 0 * inf would be NaN
    });
}

template <class T>
void shrink(const void* in, void* out, int64_t numel, double threshold) {
    using C = typename T::Compute;
    const C t = C(threshold);
    map<T>(in, out, numel, [t](C x) { return soft_threshold(x, t); });
}

template <class T>
constexpr DtypeKernels kKernels = {
    update<T>, update_groups<T>, proximal<T>,       reduce<T>,         penalty_gradient<T>, shrink<T>,
    value<T>,  slope<T>,         weighted_value<T>, weighted_slope<T>, group_squares<T>,    group_scale<T>,
};

#define REGKERNELS_STRING(X) #X
#define REGKERNELS_NAME(X) REGKERNELS_STRING(X)
#define REGKERNELS_JOIN(A, B) A##B
#define REGKERNELS_ACCESSOR(TARGET) REGKERNELS_JOIN(kernels_, TARGET)
#define REGKERNELS_KERNELS(NAME, TYPE) kKernels<TYPE>,

constexpr Kernels kTable = {REGKERNELS_NAME(REGKERNELS_TARGET), {REGKERNELS_DTYPES(REGKERNELS_KERNELS)}};

}  // namespace

const Kernels& REGKERNELS_ACCESSOR(REGKERNELS_TARGET)() { return kTable; }

}  // namespace regkernels
