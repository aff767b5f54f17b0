"""Where the backend looks for the operators until it looks in `regkernels.backends.triton.kernels.penalties`."""

from regkernels.backends.triton.kernels.penalties import OPERATORS as OPERATORS
