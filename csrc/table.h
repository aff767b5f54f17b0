// The memory layout that Python (regkernels/table/segments.py) and the kernels agree on, expanded from lists.h.
//
// Python lays these tables out as int64 and float64 tensors and passes their addresses.
#pragma once

#include <cstdint>

#include "lists.h"

namespace regkernels {

// Of the functions in bindings.cpp: raised whenever one takes or returns something else, so that Python files refuse an
// extension that was built for others. regkernels/backends/extension.py has the same number.
constexpr int kInterface = 10;

#define REGKERNELS_INTEGER(NAME) int64_t NAME;
#define REGKERNELS_INTEGERS(NAME, COUNT) int64_t NAME[COUNT];
#define REGKERNELS_DOUBLE(NAME) double NAME;
#define REGKERNELS_ENUMERATOR(NAME, TYPE, ...) k##TYPE,
#define REGKERNELS_ONE(...) +1

struct Segment {
    REGKERNELS_SEGMENT(REGKERNELS_INTEGER, REGKERNELS_INTEGERS)
};

struct Hyper {
    REGKERNELS_HYPER(REGKERNELS_DOUBLE, REGKERNELS_DOUBLE, REGKERNELS_DOUBLE)
};

struct Sums {
    REGKERNELS_SUMS(REGKERNELS_DOUBLE)
};

constexpr int kSums = 0 REGKERNELS_SUMS(REGKERNELS_ONE);

enum Dtype : int64_t { REGKERNELS_DTYPES(REGKERNELS_ENUMERATOR) kDtypes };
enum Rounding : int64_t { REGKERNELS_ROUNDINGS(REGKERNELS_ENUMERATOR) kRoundings };
enum Penalty : int64_t { REGKERNELS_PENALTIES(REGKERNELS_ENUMERATOR) kPenalties };

// Of the states of any rule.
constexpr int kMaxStates = sizeof(Segment::state) / sizeof(int64_t);

// The kind of a segment is method * kFormats + format, with method = rule * kPenalties + penalty and
// format = (dtype * 2 + narrow) * kRoundings + rounding.
constexpr int64_t kFormats = kDtypes * 2 * kRoundings;
struct Kind {
    explicit Kind(int64_t kind)
        : rule(kind / kFormats / kPenalties),
          dtype(kind % kFormats / (2 * kRoundings)),
          narrow(kind / kRoundings % 2),
          rounding(Rounding(kind % kRoundings)),
          penalty(Penalty(kind / kFormats % kPenalties)) {}
    int64_t rule;   // in the order of REGKERNELS_RULES
    int64_t dtype;  // of the weights
    bool narrow;    // states in bfloat16
    Rounding rounding;
    Penalty penalty;
};

// That of a segment whose step somebody else has made is (metric * kDtypes + dtype) * 2 + narrow.
struct ProximalKind {
    explicit ProximalKind(int64_t kind) : metric(kind / (2 * kDtypes)), dtype(kind / 2 % kDtypes), narrow(kind % 2) {}
    int64_t metric;  // in the order of REGKERNELS_METRICS
    int64_t dtype;
    bool narrow;  // operands in the type of half-precision weights
};

// Elements per unit of work. Partial sums are formed per chunk and added in order, so this number is part of what
// makes a sum reproducible: changing it changes the last bits of every penalty.
constexpr int64_t kChunk = 16384;

}  // namespace regkernels
