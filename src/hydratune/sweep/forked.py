"""The process that all workers are forked from: it imports everything once, beginning as early as it can."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """Starts that process the first time, and does not wait for it."""
    result = multiprocessing.get_context("forkserver")
    result.set_forkserver_preload(["hydratune.sweep.preload"])
    forkserver.ensure_running()
    return result
