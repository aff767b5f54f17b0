"""Tests all of regkernels, in the folders of the package: what `regkernels/x` does is tested in `tests/x`.

Some folders mirror no part of it: `support` has no tests, `triton` compiles the kernels, `interpreted` and `gpu` run them where
`backends` compares them on the CPU, `touch` proves which files an addition touches, and `integrations`, `docs`, `benchmarks` and
`project` test what is around the package. Modules at the root of the package are tested at the root; what validation refuses, where it is refused.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Of the repository: where docs, examples and benchmarks lie."""
