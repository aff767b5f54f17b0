// The optimizer rules: from a gradient to a move of the weight and a step s per element, updating the states.
//
// Each in two parts: `observe` takes the gradient into the states and returns the second moment v, `advance` makes the
// step. Between them v may be shared within a group of elements, where the reference calls `share`.
//
// Same names and order of lines as in regkernels/reference/rules.py; every expression is written so that it rounds
// where the reference rounds. A rule with a step of its own per element says so in kStepPerElement. One that is added
// here takes a line in REGKERNELS_RULES in lists.h.
#pragma once

#include "arithmetic.h"
#include "row.h"

namespace regkernels {
namespace {

template <class C>
struct SGD {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 0;
    static C observe(C, C&, C&, C&, const Row<C>&) { return C(0); }
    static void advance(C g, C, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr;
        move = h.lr * g;
    }
};

template <class C>
struct Momentum {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 1;
    static C observe(C g, C& buffer, C&, C&, const Row<C>& h) {
        buffer = h.momentum * buffer + h.one_minus_dampening * g;
        return C(0);
    }
    static void advance(C g, C, C& buffer, C&, C&, const Row<C>& h, C& move, C& s) {
        const C u = h.nesterov ? g + h.momentum * buffer : buffer;
        s = h.lr;
        move = h.lr * u;
    }
};

template <class C>
struct Adam {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static C observe(C g, C& exp_avg, C& exp_avg_sq, C&, const Row<C>& h) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        return exp_avg_sq;
    }
    static void advance(C, C v, C& exp_avg, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr / (square_root(v) * h.inverse_sqrt_bias2 + h.eps);
        move = s * (exp_avg * h.inverse_bias1);
    }
};

template <class C>
struct AMSGrad {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 3;
    static C observe(C g, C& exp_avg, C& exp_avg_sq, C& max_exp_avg_sq, const Row<C>& h) {
        exp_avg = h.beta1 * exp_avg + h.one_minus_beta1 * g;
        exp_avg_sq = h.beta2 * exp_avg_sq + h.one_minus_beta2 * g * g;
        const bool larger = exp_avg_sq > max_exp_avg_sq || exp_avg_sq != exp_avg_sq;  // NaN must not be forgotten
        max_exp_avg_sq = larger ? exp_avg_sq : max_exp_avg_sq;
        return max_exp_avg_sq;
    }
    static void advance(C, C v, C& exp_avg, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr / (square_root(v) * h.inverse_sqrt_bias2 + h.eps);
        move = s * (exp_avg * h.inverse_bias1);
    }
};

template <class C>
struct RMSprop {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 1;
    static C observe(C g, C& square_avg, C&, C&, const Row<C>& h) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        return square_avg;
    }
    static void advance(C g, C v, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr / (square_root(v) + h.eps);
        move = s * g;
    }
};

template <class C>
struct RMSpropMomentum {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 2;
    static C observe(C g, C& square_avg, C&, C&, const Row<C>& h) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        return square_avg;
    }
    static void advance(C g, C v, C&, C& buffer, C&, const Row<C>& h, C& move, C& s) {
        const C scale = 1 / (square_root(v) + h.eps);
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
    static C observe(C g, C& square_avg, C& grad_avg, C&, const Row<C>& h) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g;
        return variance(square_avg, grad_avg);
    }
    static void advance(C g, C v, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr / (square_root(v) + h.eps);
        move = s * g;
    }
};

template <class C>
struct RMSpropCenteredMomentum {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 3;
    static C observe(C g, C& square_avg, C&, C& grad_avg, const Row<C>& h) {
        square_avg = h.beta2 * square_avg + h.one_minus_beta2 * g * g;
        grad_avg = h.beta2 * grad_avg + h.one_minus_beta2 * g;
        return variance(square_avg, grad_avg);
    }
    static void advance(C g, C v, C&, C& buffer, C&, const Row<C>& h, C& move, C& s) {
        const C scale = 1 / (square_root(v) + h.eps);
        buffer = h.momentum * buffer + scale * g;
        s = h.lr * scale;
        move = h.lr * buffer;
    }
};

template <class C>
struct Adagrad {
    static constexpr bool kStepPerElement = true;
    static constexpr int kStates = 1;
    static C observe(C g, C& total, C&, C&, const Row<C>&) {
        total = total + g * g;
        return total;
    }
    static void advance(C g, C v, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr / (square_root(v) + h.eps);
        move = s * g;
    }
};

template <class C>
struct Lion {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 1;
    static C observe(C, C&, C&, C&, const Row<C>&) { return C(0); }
    static void advance(C g, C, C& exp_avg, C&, C&, const Row<C>& h, C& move, C& s) {
        const C u = sign(h.beta1 * exp_avg + h.one_minus_beta1 * g);
        exp_avg = h.beta2 * exp_avg + h.one_minus_beta2 * g;
        s = h.lr;
        move = h.lr * u;
    }
};

// No step at all: what follows is applied to the weights as they are.
template <class C>
struct Still {
    static constexpr bool kStepPerElement = false;
    static constexpr int kStates = 0;
    static C observe(C, C&, C&, C&, const Row<C>&) { return C(0); }
    static void advance(C, C, C&, C&, C&, const Row<C>& h, C& move, C& s) {
        s = h.lr;
        move = C(0);
    }
};

}  // namespace
}  // namespace regkernels
