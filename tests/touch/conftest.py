"""Minutes of building: `make touch` runs these tests, which sets REGKERNELS_TOUCH=1."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("REGKERNELS_TOUCH") else ["test_*.py"]
