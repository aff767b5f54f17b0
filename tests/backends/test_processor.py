"""The instruction sets that the extension finds, beside what the operating system says of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from regkernels.backends import extension

CPUINFO = Path("/proc/cpuinfo")
NEEDS = {
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "avx512": {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}


@pytest.mark.skipif(extension.C is None, reason="the extension is not built")
@pytest.mark.skipif(not CPUINFO.exists(), reason="Linux says there what the processor has")
def test_what_the_processor_has_is_found() -> None:
    flags = next((line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    has = set(flags.partition(":")[2].split())
    assert extension.C.available_isas() == ["baseline", *(name for name, needs in NEEDS.items() if needs <= has)]
