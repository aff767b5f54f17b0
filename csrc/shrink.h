// The regularisation of one element. Same names and order of lines as regkernels/reference/elementwise.py.
#pragma once

namespace regkernels {
namespace {

template <class C>
inline C sign(C x) {
    return x > 0 ? C(1) : (x < 0 ? C(-1) : (x == 0 ? C(0) : x));
}

// Proximal operator of t * |x|. A comparison with NaN is false, so NaN falls through and stays; x - x is +0.
template <class C>
inline C soft_threshold(C z, C t) {
    const C low = z < -t ? -t : z;
    const C clamped = low > t ? t : low;
    return t > 0 ? z - clamped : z;
}

}  // namespace
}  // namespace regkernels
