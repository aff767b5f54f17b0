// Metrics: the step s that an optimizer took for an element, from the state it left behind. They are for proximal
// operators that run after somebody else's step.
//
// Same names and order of lines as in regkernels/reference/metrics.py; every expression is written so that it rounds
// where the reference rounds.
#pragma once

#include "rules.h"

namespace regkernels {
namespace {

template <class C>
struct Constant {
    static constexpr int kOperands = 0;
    static C step(C, C, const Row<C>& h) { return h.lr; }
};

template <class C>
struct Root {
    static constexpr int kOperands = 1;
    static C step(C square_avg, C, const Row<C>& h) {
        return h.lr / (square_root(square_avg) * h.inverse_sqrt_bias2 + h.eps);
    }
};

template <class C>
struct Centered {
    static constexpr int kOperands = 2;
    static C step(C square_avg, C grad_avg, const Row<C>& h) {
        return h.lr / (square_root(variance(square_avg, grad_avg)) + h.eps);
    }
};

template <class C>
struct Reciprocal {
    static constexpr int kOperands = 1;
    static C step(C norm, C, const Row<C>& h) { return h.lr / (norm + h.eps); }
};

template <class C>
struct Direct {
    static constexpr int kOperands = 1;
    static C step(C s, C, const Row<C>&) { return s; }
};

}  // namespace
}  // namespace regkernels
