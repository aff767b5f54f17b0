"""Says how much hypothesis tries: a little and always the same in `make test`, by chance and for long in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = "REGKERNELS_FUZZ_EXAMPLES"
"""Per cent of the examples of `make test` that a run of `make fuzz` tries, which sets it."""

_common = {
    "deadline": None,
    "database": None,
    "suppress_health_check": (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
}
settings.register_profile("short", derandomize=True, **_common)
settings.register_profile("long", derandomize=False, print_blob=True, **_common)

PROFILE = "long" if EXAMPLES in os.environ else "short"


def fuzzed(examples: int, steps: int = 12) -> settings:
    """Settings of a test that tries ``examples`` in `make test`; ``steps``: of each, where it is a state machine."""
    if PROFILE == "long":
        examples, steps = max(1, examples * int(os.environ[EXAMPLES]) // 100), 3 * steps
    return settings(settings.get_profile(PROFILE), max_examples=examples, stateful_step_count=steps)
