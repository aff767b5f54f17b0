// The optimizer rules: from a gradient to a move of the weight and a step s per element, updating the states.
//
// Same names and order of lines as in regkernels/reference/rules.py; every expression is written so that it rounds
// where the reference rounds. A rule with a step of its own per element says so in kStepPerElement.
#pragma once

#include "shrink.h"
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
    static void apply(C g, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr;
        move = h.lr * g;
    }
};

template <class C>
struct Momentum {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 1;
    static void apply(C g, C& buffer, C&, C&, const Row<C>& h, C& move, C& s) {
        buffer = h.momentum * buffer + h.one_minus_dampening * g;
        const C u = h.nesterov ? g + h.momentum * buffer : buffer;
        s = h.lr;
        move = h.lr * u;
    }
};

template <class C>
struct Adam {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static void apply(C g, C& exp_avg, C& exp_avg_sq, C&, const Row<C>& h, C& move, C& s) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        s = h.lr / (square_root(exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps);
        move = s * (exp_avg * h.inverse_bias1);
    }
};

template <class C>
struct AMSGrad {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 3;
    static void apply(C g, C& exp_avg, C& exp_avg_sq, C& max_exp_avg_sq, const Row<C>& h, C& move, C& s) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        const bool larger = exp_avg_sq > max_exp_avg_sq || exp_avg_sq != exp_avg_sq;  // NaN must not be forgotten
        max_exp_avg_sq = larger ? exp_avg_sq : max_exp_avg_sq;
        s = h.lr / (square_root(max_exp_avg_sq) * h.inverse_sqrt_bias2 + h.eps);
        move = s * (exp_avg * h.inverse_bias1);
    }
};

template <class C>
struct RMSprop {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 1;
    static void apply(C g, C& square_avg, C&, C&, const Row<C>& h, C& move, C& s) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        s = h.lr / (square_root(square_avg) + h.eps);
        move = s * g;
    }
};

template <class C>
struct RMSpropMomentum {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static void apply(C g, C& square_avg, C& buffer, C&, const Row<C>& h, C& move, C& s) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        const C scale = 1 / (square_root(square_avg) + h.eps);
        buffer = h.momentum * buffer + scale * g;
        s = h.lr * scale;
        move = h.lr * buffer;
    }
};

template <class C>
inline C variance(C square_avg, C grad_avg) {
    const C difference = square_avg - grad_avg * grad_avg;
    return difference < 0 ? C(0) : difference;
}

template <class C>
struct RMSpropCentered {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static void apply(C g, C& square_avg, C& grad_avg, C&, const Row<C>& h, C& move, C& s) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g;
        s = h.lr / (square_root(variance(square_avg, grad_avg)) + h.eps);
        move = s * g;
    }
};

template <class C>
struct RMSpropCenteredMomentum {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 3;
    static void apply(C g, C& square_avg, C& buffer, C& grad_avg, const Row<C>& h, C& move, C& s) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g;
        const C scale = 1 / (square_root(variance(square_avg, grad_avg)) + h.eps);
        buffer = h.momentum * buffer + scale * g;
        s = h.lr * scale;
        move = h.lr * buffer;
    }
};

template <class C>
struct Adagrad {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 1;
    static void apply(C g, C& total, C&, C&, const Row<C>& h, C& move, C& s) {
        total = total + g * g;
        s = h.lr / (square_root(total) + h.eps);
        move = s * g;
    }
};

template <class C>
struct Lion {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 1;
    static void apply(C g, C& exp_avg, C&, C&, const Row<C>& h, C& move, C& s) {
        const C u = sign(h.beta1 * exp_avg + h.one_minus_beta1 * g);
        exp_avg = h.beta2 * exp_avg + h.one_minus_beta2 * g;
        s = h.lr;
        move = h.lr * u;
    }
};

}  // namespace
}  // namespace regkernels
