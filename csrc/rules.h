// The optimizer rules: from a gradient to a direction u and a step s per element, updating the states.
//
// Same names and order of lines as in regkernels/reference/rules.py; every expression is written so that it rounds where
// the reference rounds. A rule with a step of its own per element says so in kStepPerElement.
#pragma once

#include "table.h"

namespace regkernels {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// The hyper-parameters in the compute type, each rounded once.
template <class C>
struct Row {
    explicit Row(const Hyper& h)
        : scale(C(h.scale)),
          lr(C(h.lr)),
          coupled_decay(C(h.coupled_decay)),
          subgradient(C(h.subgradient)),
          decay(C(h.decay)),
          threshold(C(h.threshold)),
          threshold_per_step(C(h.threshold_per_step)),
          shrink_divisor(C(h.shrink_divisor)),
          shrink_per_step(C(h.shrink_per_step)),
          momentum(C(h.momentum)),
          one_minus_dampening(C(h.one_minus_dampening)),
          nesterov(h.nesterov != 0),
          beta1(C(h.beta1)),
          one_minus_beta1(C(h.one_minus_beta1)),
          beta2(C(h.beta2)),
          one_minus_beta2(C(h.one_minus_beta2)),
          inverse_bias1(C(h.inverse_bias1)),
          inverse_sqrt_bias2(C(h.inverse_sqrt_bias2)),
          eps(C(h.eps)) {}

    C scale, lr, coupled_decay, subgradient, decay, threshold, threshold_per_step, shrink_divisor, shrink_per_step;
    C momentum, one_minus_dampening;
    bool nesterov;
    C beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_bias1, inverse_sqrt_bias2, eps;
};

template <class C>
struct SGD {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 0;
    static void apply(C g, C&, C&, C&, const Row<C>& h, C& u, C& s) {
        u = g;
        s = h.lr;
    }
};

template <class C>
struct Momentum {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 1;
    static void apply(C g, C& buffer, C&, C&, const Row<C>& h, C& u, C& s) {
        buffer = h.momentum * buffer + h.one_minus_dampening * g;
        u = h.nesterov ? g + h.momentum * buffer : buffer;
        s = h.lr;
    }
};

template <class C>
struct Adam {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static void apply(C g, C& exp_avg, C& exp_avg_sq, C&, const Row<C>& h, C& u, C& s) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        u = exp_avg * h.inverse_bias1;
        s = h.lr / (square_root(exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps);
    }
};

template <class C>
struct AMSGrad {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 3;
    static void apply(C g, C& exp_avg, C& exp_avg_sq, C& max_exp_avg_sq, const Row<C>& h, C& u, C& s) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        const bool larger = exp_avg_sq > max_exp_avg_sq || exp_avg_sq != exp_avg_sq;  // NaN must not be forgotten
        max_exp_avg_sq = larger ? exp_avg_sq : max_exp_avg_sq;
        u = exp_avg * h.inverse_bias1;
        s = h.lr / (square_root(max_exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps);
    }
};

}  // namespace
}  // namespace regkernels
