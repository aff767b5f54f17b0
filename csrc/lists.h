// Everything that C++ and Python know by name, once: one list each, one line per entry.
//
// A list hands its lines to the macros it is given, and what it is needed for (structs, enums, tables of kernels, what
// regkernels._C.layout() reports) is expanded from it elsewhere. The first column is Python's name, and the order is
// Python's: both are compared when the extension is loaded, see regkernels/backends/extension.py.
#pragma once

// clang-format off

// name in Python, type in dtypes.h and kTYPE
#define REGKERNELS_DTYPES(X) \
    X(float64,  Float64)     \
    X(float32,  Float32)     \
    X(float16,  Float16)     \
    X(bfloat16, BFloat16)

// How half-precision weights are rounded: name in Python, kNAME; see rounding.h.
#define REGKERNELS_ROUNDINGS(X) \
    X(nearest,    Nearest)      \
    X(stochastic, Stochastic)   \
    X(remainder,  Remainder)    \
    X(master,     Master)

// Optimizers: name in Python, type in rules.h.
#define REGKERNELS_RULES(X)                               \
    X(sgd,                       SGD)                     \
    X(momentum,                  Momentum)                \
    X(adam,                      Adam)                    \
    X(amsgrad,                   AMSGrad)                 \
    X(rmsprop,                   RMSprop)                 \
    X(rmsprop_momentum,          RMSpropMomentum)         \
    X(rmsprop_centered,          RMSpropCentered)         \
    X(rmsprop_centered_momentum, RMSpropCenteredMomentum) \
    X(adagrad,                   Adagrad)                 \
    X(lion,                      Lion)                    \
    X(still,                     Still)

// What the step of an element is computed from where somebody else has made it: name in Python, type in metrics.h.
#define REGKERNELS_METRICS(X)  \
    X(constant,   Constant)    \
    X(root,       Root)        \
    X(centered,   Centered)    \
    X(reciprocal, Reciprocal)  \
    X(direct,     Direct)

// What follows the rule: name in Python, kNAME, and what is done to each element, in penalised.h with its operator from
// penalties.h. "plain" is all that a row of numbers can say, soft-threshold and decay; "l1" adds bounds and cautious
// decay; "group" acts on the norms of groups, too, see group_step.h.
#define REGKERNELS_PENALTIES(X)                       \
    X(plain,       Plain,      SoftThreshold)         \
    X(l1,          L1,         SoftThreshold)         \
    X(weighted_l1, WeightedL1, WeightedSoftThreshold) \
    X(l0,          L0,         Penalised<L0>)         \
    X(l_half,      LHalf,      Penalised<LHalf>)      \
    X(mcp,         MCP,        Penalised<MCP>)        \
    X(scad,        SCAD,       Penalised<SCAD>)       \
    X(log_sum,     LogSum,     Penalised<LogSum>)     \
    X(huber,       Huber,      Penalised<Huber>)      \
    X(group,       Group,      SoftThreshold)

// Values and slopes of penalties, of which several penalties may share one: name in Python, type in penalties.h.
#define REGKERNELS_FORMULAS(X)            \
    X(l0,             L0Value)            \
    X(l_half,         LHalfValue)         \
    X(folded_concave, FoldedConcaveValue) \
    X(log_sum,        LogSumValue)        \
    X(huber,          HuberValue)

// One row of hyper-parameters, computed on the host in double. Zero (one, where it multiplies) means "not asked for".
// Kernels read a NUMBER in their compute type and a FLAG as "is it not 0?", from Row in row.h; a HOST field stays a
// double, as it would lose bits or is looked at before a kernel starts.
#define REGKERNELS_HYPER(NUMBER, FLAG, HOST)                                                       \
    NUMBER(scale)               /* of the gradient: clipping, and -1 to maximize */                \
    NUMBER(lr)                  /* 0: no weight is written */                                      \
    NUMBER(coupled_decay)       /* g += coupled_decay * w */                                       \
    NUMBER(subgradient)         /* g += subgradient * sign(w) */                                   \
    NUMBER(decay)               /* w *= decay, before the step */                                  \
    NUMBER(threshold)           /* soft-threshold, the same for every element */                   \
    NUMBER(threshold_per_step)  /* soft-threshold as a multiple of the element's step */           \
    NUMBER(shrink_divisor)      /* w /= shrink_divisor, after the step */                          \
    NUMBER(shrink_per_step)     /* w /= 1 + shrink_per_step * the element's step */                \
    NUMBER(momentum)            /* SGD */                                                          \
    NUMBER(one_minus_dampening) /* SGD */                                                          \
    FLAG(nesterov)              /* SGD */                                                          \
    NUMBER(beta1)               /* Adam */                                                         \
    NUMBER(one_minus_beta1)     /* Adam */                                                         \
    NUMBER(beta2)               /* Adam; RMSprop's alpha */                                        \
    NUMBER(one_minus_beta2)     /* Adam */                                                         \
    NUMBER(inverse_bias1)       /* Adam, 1 / (1 - beta1^step) */                                   \
    NUMBER(inverse_sqrt_bias2)  /* Adam, 1 / sqrt(1 - beta2^step) */                               \
    NUMBER(eps)                 /* Adam */                                                         \
    NUMBER(gain)                /* of the rule: a penalty's step is gain * the element's step */   \
    NUMBER(strength)            /* of a penalty beyond l1 */                                       \
    NUMBER(shape)               /* its second parameter: gamma, a, eps, delta */                   \
    NUMBER(largest_shrink)      /* what a proximal step takes from a weight at most */             \
    NUMBER(lower)               /* bounds of the weight, after the penalty */                      \
    NUMBER(upper)                                                                                  \
    FLAG(cautious)              /* decay only where it does not work against the move */           \
    NUMBER(group_strength)      /* group soft-threshold as a multiple of the group's step */       \
    FLAG(group_by_size)         /* that times sqrt(elements of the group) */                       \
    NUMBER(max_norm)            /* of a group */                                                   \
    FLAG(unit_norm)             /* groups are scaled to norm 1 */                                  \
    HOST(skip)                  /* not 0: nothing is written */                                    \
    HOST(seed)                  /* of stochastic rounding */                                       \
    HOST(step)                  /* of stochastic rounding */

// One contiguous run of elements: where its buffers start, how long it is, which hyper-parameters it uses. An ARRAY has
// a number after each of its names in Python.
#define REGKERNELS_SEGMENT(FIELD, ARRAY)                                                                \
    FIELD(weight)                                                                                       \
    FIELD(gradient)                                                                                     \
    ARRAY(state, 3)                                                                                     \
    FIELD(kept)      /* what rounding takes from the weights: a remainder or a master copy */           \
    FIELD(l1_weight) /* of each element's l1, in the compute type */                                    \
    FIELD(numel)                                                                                        \
    FIELD(row)       /* index into the table of hyper-parameters */                                     \
    FIELD(total)     /* index into the table of sums */                                                 \
    FIELD(stream)    /* the parameter's number, where random numbers are needed */                      \
    FIELD(place)     /* of the first element in the whole parameter, of which this may be a part */     \
    FIELD(gap)       /* elements of other parts between one o and the next, see groups */               \
    FIELD(groups)    /* element (o * groups + g) * inner + i belongs to group g */                      \
    FIELD(inner)                                                                                        \
    FIELD(kind)      /* see Kind in table.h */

// Sums over elements. Kept in double: exact enough at every length, and the same for every instruction set.
#define REGKERNELS_SUMS(X)                                 \
    X(absolute)    /* sum |w| */                           \
    X(square)      /* sum w^2 */                           \
    X(nonzeros)    /* number of w != 0 */                  \
    X(gradient)    /* sum g^2, before scaling */           \
    X(zero_groups) /* number of groups without w != 0 */

// clang-format on
