"""The process that all workers are forked from: it imports everything once, beginning as early as it can."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """Starts that process the first time, and does not wait for it."""
    result = multiprocessing.get_context("forkserver")
    result.set_forkserver_preload(["hydratune.sweep.preload"])
    with _unheard(signal.SIGINT):
        forkserver.ensure_running()
    return result


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """What is started within ignores the signal from its first instruction on; here it is heard a moment later.

    Ctrl-C goes to every process of a terminal, and the command alone decides what becomes of its workers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
