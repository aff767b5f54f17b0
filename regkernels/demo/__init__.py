"""The demo trains one network in four ways on scikit-learn's handwritten digits, and shows what comes of it.

Nothing here is for use in other programs: those of `examples/` are, and speed is measured by `benchmarks/`. Importing this package needs
none of what it needs; running the demo needs ``pip install scikit-learn matplotlib rich``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

_NEEDED = {"scikit-learn": "sklearn.datasets", "matplotlib": "matplotlib", "rich": "rich"}


def missing_packages() -> dict[str, str]:
    """Finds the packages that the demo needs and that cannot be imported, each with Python's reason."""
    missing = {}
    for package, module in _NEEDED.items():
        try:
            import_module(module)
        except ImportError as error:
            missing[package] = str(error)
    return missing


def run(output: Path, *, seed: int = 0, epochs: int | None = None, quick: bool = False) -> None:
    """Trains, measures, prints a table and writes the picture to ``output``. ``epochs=None``: the demo's own number."""
    from regkernels.demo import command

    command.run(output, seed=seed, epochs=epochs, quick=quick)
