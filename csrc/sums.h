// Sums over a run of weights, bit for bit the same at every vector width.
//
// Element i goes to lane i mod kLanes, whatever the width of a register; the lanes are then added in index order.
#pragma once

#include "dtypes.h"
#include "table.h"

namespace regkernels {
namespace {

constexpr int kLanes = 16;

// Carried across the blocks of a chunk, so blocks must be multiples of kLanes except for the last.
struct Lanes {
    double absolute[kLanes] = {};
    double square[kLanes] = {};
    double nonzeros[kLanes] = {};
    double gradient[kLanes] = {};
};

inline double add_lanes(const double (&lanes)[kLanes]) {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
}

template <class T>
inline void add_element(Lanes& lanes, int lane, typename T::Storage stored) {
    const double x = static_cast<double>(T::load(stored));
    lanes.absolute[lane] += __builtin_fabs(x);
    lanes.square[lane] += x * x;
    lanes.nonzeros[lane] += x != 0 ? 1.0 : 0.0;
}

template <class T>
inline void add_weights(Lanes& total, const typename T::Storage* weight, int64_t numel) {
    Lanes lanes = total;  // a local copy: the compiler can keep it in registers
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) add_element<T>(lanes, lane, weight[i + lane]);
    for (int lane = 0; i + lane < numel; ++lane) add_element<T>(lanes, lane, weight[i + lane]);
    total = lanes;
}

template <class T>
inline void add_gradient_element(Lanes& lanes, int lane, typename T::Storage stored) {
    const double x = static_cast<double>(T::load(stored));
    lanes.gradient[lane] += x * x;
}

template <class T>
inline void add_gradients(Lanes& total, const typename T::Storage* gradient, int64_t numel) {
    Lanes lanes = total;
    int64_t i = 0;
    for (; i + kLanes <= numel; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) add_gradient_element<T>(lanes, lane, gradient[i + lane]);
    for (int lane = 0; i + lane < numel; ++lane) add_gradient_element<T>(lanes, lane, gradient[i + lane]);
    total = lanes;
}

inline void finish(const Lanes& lanes, Sums* sums) {
    sums->absolute += add_lanes(lanes.absolute);
    sums->square += add_lanes(lanes.square);
    sums->nonzeros += add_lanes(lanes.nonzeros);
    sums->gradient += add_lanes(lanes.gradient);
}

}  // namespace
}  // namespace regkernels
