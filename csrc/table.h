// The memory layout that Python (regkernels/segments.py) and the kernels agree on.
//
// Python lays these tables out as int64 and float64 tensors and passes their addresses; regkernels._C.layout()
// reports the field names, and regkernels.segments refuses to load when they differ from its own.
#pragma once

#include <cstdint>

namespace regkernels {

// Of the functions in bindings.cpp: raised whenever one takes or returns something else, so that Python files refuse an
// extension that was built for others. regkernels/segments.py has the same number.
constexpr int kInterface = 7;

// One contiguous run of elements: where its buffers start, how long it is, which hyper-parameters it uses.
struct Segment {
    int64_t weight;
    int64_t gradient;
    int64_t state[3];
    int64_t kept;       // what rounding takes from the weights: a remainder or a master copy
    int64_t l1_weight;  // of each element's l1, in the compute type
    int64_t numel;
    int64_t row;     // index into the hyper-parameter table
    int64_t total;   // index into the table of sums (the param group)
    int64_t stream;  // the parameter's number, where random numbers are needed
    int64_t place;   // of the first element in the whole parameter, of which this may be a part
    int64_t gap;     // elements of other parts between one o and the next, see groups
    int64_t groups;  // element (o * groups + g) * inner + i belongs to group g
    int64_t inner;
    int64_t kind;  // see Kind
};

constexpr const char* kSegmentFields[] = {"weight",    "gradient", "state0", "state1", "state2", "kept",
                                          "l1_weight", "numel",    "row",    "total",  "stream", "place",
                                          "gap",       "groups",   "inner",  "kind"};

// One row of hyper-parameters, computed on the host in double. Zero (one, where it multiplies) means "not asked for".
struct Hyper {
    double scale;                // of the gradient: clipping, and -1 to maximize
    double lr;                   // 0: no weight is written
    double coupled_decay;        // g += coupled_decay * w
    double subgradient;          // g += subgradient * sign(w)
    double decay;                // w *= decay, before the step
    double threshold;            // soft-threshold, the same for every element
    double threshold_per_step;   // soft-threshold as a multiple of the element's step
    double shrink_divisor;       // w /= shrink_divisor, after the step
    double shrink_per_step;      // w /= 1 + shrink_per_step * the element's step
    double momentum;             // SGD
    double one_minus_dampening;  // SGD
    double nesterov;             // SGD, 0 or 1
    double beta1;                // Adam
    double one_minus_beta1;      // Adam
    double beta2;                // Adam; RMSprop's alpha
    double one_minus_beta2;      // Adam
    double inverse_bias1;        // Adam, 1 / (1 - beta1^step)
    double inverse_sqrt_bias2;   // Adam, 1 / sqrt(1 - beta2^step)
    double eps;                  // Adam
    double gain;                 // of the rule: a penalty's step is gain * the element's step
    double strength;             // of a penalty beyond l1
    double shape;                // its second parameter: gamma, a, eps, delta
    double lower;                // bounds of the weight, after the penalty
    double upper;
    double cautious;        // not 0: decay only where it does not work against the move
    double group_strength;  // group soft-threshold as a multiple of the group's step
    double group_by_size;   // not 0: that times sqrt(elements of the group)
    double max_norm;        // of a group
    double unit_norm;       // not 0: groups are scaled to norm 1
    double skip;            // not 0: nothing is written
    double seed;            // of stochastic rounding
    double step;            // of stochastic rounding
};

constexpr const char* kHyperFields[] = {"scale",
                                        "lr",
                                        "coupled_decay",
                                        "subgradient",
                                        "decay",
                                        "threshold",
                                        "threshold_per_step",
                                        "shrink_divisor",
                                        "shrink_per_step",
                                        "momentum",
                                        "one_minus_dampening",
                                        "nesterov",
                                        "beta1",
                                        "one_minus_beta1",
                                        "beta2",
                                        "one_minus_beta2",
                                        "inverse_bias1",
                                        "inverse_sqrt_bias2",
                                        "eps",
                                        "gain",
                                        "strength",
                                        "shape",
                                        "lower",
                                        "upper",
                                        "cautious",
                                        "group_strength",
                                        "group_by_size",
                                        "max_norm",
                                        "unit_norm",
                                        "skip",
                                        "seed",
                                        "step"};
static_assert(sizeof(Hyper) == sizeof(kHyperFields) / sizeof(kHyperFields[0]) * sizeof(double), "one name per field");
static_assert(sizeof(Segment) == sizeof(kSegmentFields) / sizeof(kSegmentFields[0]) * sizeof(int64_t),
              "one name per field");

// Sums over elements. Kept in double: exact enough at every length, and the same for every instruction set.
struct Sums {
    double absolute;     // sum |w|
    double square;       // sum w^2
    double nonzeros;     // number of w != 0
    double gradient;     // sum g^2, before scaling
    double zero_groups;  // number of groups without w != 0
};
constexpr int kSums = 5;

enum Dtype : int64_t { kFloat64, kFloat32, kFloat16, kBFloat16, kDtypes };
enum Rule : int64_t {
    kSGD,
    kMomentum,
    kAdam,
    kAMSGrad,
    kRMSprop,
    kRMSpropMomentum,
    kRMSpropCentered,
    kRMSpropCenteredMomentum,
    kAdagrad,
    kLion,
    kStill,
    kRules
};
enum Rounding : int64_t { kNearest, kStochastic, kRemainder, kMaster, kRoundings };

// What follows the rule. kPlain is all that a row of numbers can say: soft-threshold and decay. kL1 adds bounds and
// cautious decay, kWeightedL1 a strength per element; the next ones are in operators.h; kGroup acts on groups.
enum Penalty : int64_t { kPlain, kL1, kWeightedL1, kL0, kLHalf, kMCP, kSCAD, kLogSum, kHuber, kGroup, kPenalties };

// The kind of a segment is method * kFormats + format, with method = rule * kPenalties + penalty and
// format = (dtype * 2 + narrow) * kRoundings + rounding.
constexpr int64_t kFormats = kDtypes * 2 * kRoundings;
struct Kind {
    explicit Kind(int64_t kind)
        : kernel(kind / kFormats / kPenalties * kDtypes + kind % kFormats / (2 * kRoundings)),
          narrow(kind / kRoundings % 2),
          rounding(Rounding(kind % kRoundings)),
          penalty(Penalty(kind / kFormats % kPenalties)) {}
    int64_t kernel;  // rule * kDtypes + dtype
    bool narrow;     // states in bfloat16
    Rounding rounding;
    Penalty penalty;
};

// What the step of an element is computed from, where somebody else has made it; see metrics.h. The kind of such a
// segment is (metric * kDtypes + dtype) * 2 + narrow, with operands in the type of half-precision weights where
// `narrow`.
enum Metric : int64_t { kConstant, kRoot, kCentered, kReciprocal, kDirect, kMetrics };

// Elements per unit of work. Partial sums are formed per chunk and added in order, so this number is part of what
// makes a sum reproducible: changing it changes the last bits of every penalty.
constexpr int64_t kChunk = 16384;

}  // namespace regkernels
