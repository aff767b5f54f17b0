"""Sets torch.compile up so that what is timed is what was compiled."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles ``function`` when it is called first."""

    @functools.cache
    def made() -> Callable[..., Any]:
        # By default, dynamo runs a function eagerly, without a word, once it has compiled it for 8 lists of parameters.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._logging.set_logs(dynamo=logging.ERROR)  # it warns that it leaves out the optimizers' marks for profilers
        return torch.compile(function)

    return lambda *args: made()(*args)
