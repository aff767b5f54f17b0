"""Checks user input. Each check raises before anything is changed and names the argument, its value and what is allowed.

What arguments mean is not known here, nor which rules there are: `regkernels.optim.penalty_keys` checks penalties.
"""

from regkernels.validation.options import (
    L1_MODES,
    WEIGHT_DECAY_MODES,
    betas,
    bounds,
    decay_mode,
    decay_rate,
    finite,
    may_be_positive,
    nonnegative,
    one_of,
    param_group_argument,
    parameters_argument,
    regularised_group,
    seed,
    shape,
)
from regkernels.validation.tensors import (
    WEIGHT_DTYPES,
    complex_parameter,
    gradient,
    l1_weight,
    no_shared_memory,
    one_device,
    parameter,
    precision,
    state,
    step_count,
    unique_parameters,
)

__all__ = [
    "L1_MODES",
    "WEIGHT_DECAY_MODES",
    "WEIGHT_DTYPES",
    "betas",
    "bounds",
    "complex_parameter",
    "decay_mode",
    "decay_rate",
    "finite",
    "gradient",
    "l1_weight",
    "may_be_positive",
    "no_shared_memory",
    "nonnegative",
    "one_device",
    "one_of",
    "param_group_argument",
    "parameter",
    "parameters_argument",
    "precision",
    "regularised_group",
    "seed",
    "shape",
    "state",
    "step_count",
    "unique_parameters",
]
