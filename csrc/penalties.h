// The penalties beyond l1, each with its proximal operator and with the formulas of its value and slope, of one
// element. One that is added here takes a line in REGKERNELS_PENALTIES and, if it has formulas of its own, one in
// REGKERNELS_FORMULAS, both in lists.h.
//
// apply(v, t, u, strength, shape): the proximal operator. v is where the step has led, t the element's step,
// u = t * strength > 0; NaN stays NaN.
//
// value(w, numbers): the term of one element, in double. slope(w, a, b, c, d): the gradient of one element in the
// compute type, with upstream's factor in a and b.
//
// Same names and order of lines as in regkernels/reference/penalties.py, where the sources stand.
#pragma once

#include "arithmetic.h"
#include "runs.h"
#include "shrink.h"

namespace regkernels {
namespace {

template <class C>
struct L0 {
    static C apply(C v, C, C u, C, C) {
        const C bound = square_root(u + u);
        return magnitude(v) <= bound ? C(0) : v;
    }
};

struct L0Value {
    static double value(double w, const Numbers&) { return w != 0 ? 1.0 : 0.0; }
    template <class C>
    static C slope(C, C, C, C, C) {
        return 0;
    }
};

template <class C>
struct LHalf {
    static C apply(C v, C, C u, C, C) {
        const C a = magnitude(v);
        const C root = square_root(a);
        const C cube = a * root;
        const C c = u * C(0.5) / cube;
        C q = C(1);
        for (int k = 0; k < 6; ++k) q = q - ((q * q - 1) * q + c) / (C(3) * (q * q) - 1);
        const C x = a - u * C(0.5) / (root * q);
        return cube < u * C(1.8371173070873836) ? C(0) : (v < 0 ? -x : x);
    }
};

struct LHalfValue {
    static double value(double w, const Numbers&) { return square_root(magnitude(w)); }
    template <class C>
    static C slope(C w, C a, C, C, C) {
        const C x = w == 0 ? C(1) : magnitude(w);
        return (a * sign(w)) / square_root(x);
    }
};

template <class C>
struct MCP {
    static C apply(C v, C t, C u, C strength, C gamma) {
        const bool convex = t < gamma;
        const C firm = soft_threshold(v, u) / (convex ? 1 - t / gamma : C(1));
        const C inside = magnitude(firm) > magnitude(v) ? v : firm;
        const C bound = convex ? gamma * strength : strength * square_root(gamma * t);
        const C small = convex ? inside : C(0);
        return magnitude(v) <= bound ? small : v;
    }
};

template <class C>
struct SCAD {
    static C apply(C v, C t, C u, C strength, C shape) {
        const C a = magnitude(v);
        const C rest = shape - 1 - t;
        const bool convex = rest > 0;
        const C left = t * (shape * strength - a) / (convex ? rest : C(1));
        const C shrunk = soft_threshold(v, (convex & (left < u)) ? left : u);
        const C x = magnitude(shrunk);
        const bool better = u * strength * (shape + 1) < (x - a) * (x - a) + (u + u) * x;
        const bool beyond = (x > strength) | ((a > shape * strength) & better);
        return (!convex & beyond) ? v : shrunk;
    }
};

// MCP and SCAD: slope a, that falls by b per unit beyond c, to nothing at d.
struct FoldedConcaveValue {
    static double value(double w, const Numbers& n) {
        const double x = magnitude(w);
        const double m = x > n.fourth ? n.fourth : x;
        const double over = m > n.third ? m - n.third : 0;
        return n.first * m - n.second * (over * over);
    }
    template <class C>
    static C slope(C w, C a, C b, C c, C d) {
        const C x = magnitude(w);
        const C over = x > c ? x - c : C(0);
        const C result = sign(w) * (a - b * over);
        return x > d ? C(0) : result;
    }
};

template <class C>
struct LogSum {
    static C apply(C v, C, C u, C, C eps) {
        const C a = magnitude(v);
        const C h = (a + eps) * C(0.5);
        const C inside = 1 - u / (h * h);
        const C x = a - u / (h + h * square_root(inside > 0 ? inside : C(0)));
        const bool worse = x * (a - x * C(0.5)) < u * logarithm(1 + x / eps);
        const bool zero = (inside < 0) | (x <= 0) | ((u > eps * eps) & worse);
        return zero ? C(0) : (v < 0 ? -x : x);
    }
};

struct LogSumValue {
    static double value(double w, const Numbers& n) { return log_of_one_plus(magnitude(w) * n.first); }
    template <class C>
    static C slope(C w, C a, C, C c, C) {
        return (a * sign(w)) / (magnitude(w) + c);
    }
};

template <class C>
struct Huber {
    static C apply(C v, C, C u, C, C delta) {
        return magnitude(v) <= (1 + u) * delta ? v / (1 + u) : v - u * delta * sign(v);
    }
};

struct HuberValue {
    static double value(double w, const Numbers& n) {
        const double x = magnitude(w);
        const double m = x > n.first ? n.first : x;
        return m * (x - 0.5 * m);
    }
    template <class C>
    static C slope(C w, C a, C, C c, C) {
        const C low = w < -c ? -c : w;
        const C clamped = low > c ? c : low;
        return a * clamped;
    }
};

}  // namespace
}  // namespace regkernels
