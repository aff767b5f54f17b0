"""Runs a function in a forked child, for what ends or hangs the process where it fails."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable


def in_child(function: Callable[[], None], seconds: float = 60.0) -> None:
    """Calls ``function`` in a child; raises AssertionError where it raises there, ends the child, or takes longer."""
    child = os.fork()
    if not child:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the child was still running after {seconds} seconds")
