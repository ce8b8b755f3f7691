"""Requests to stop. SIGTERM, SIGINT and SIGUSR1 end a run at the next step's boundary, with a checkpoint.

The exit status is 128 and the signal's number, as shells have it: 143, 130, 138. A second SIGINT does not wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_asked: list[int] = []  # signals that came, in their order
_first = [0.0]  # when the first one came
_held = [False]  # whether they are noted, rather than raised where the program happens to be


class Stopped(KeyboardInterrupt):
    """A signal asked for it. `number`: that signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """Of the process that ends by it."""
        return 128 + self.number


def listen(impatient: bool = False) -> None:
    """From now on those signals raise Stopped.

    impatient: any second one does not wait for the boundary either, unless it is the same one come two ways, to the
    process and to its group.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python hears signals in its main thread only; who runs us there decides

    def hear(number: int, frame: object) -> None:
        now = time.monotonic()
        again = bool(_asked) and (number == signal.SIGINT or (impatient and now > _first[0] + 1.0))
        if not _asked:
            _first[0] = now
        _asked.append(number)
        if again or not _held[0]:
            raise Stopped(number)

    _asked.clear()
    for number in SIGNALS:
        signal.signal(number, hear)


def asked() -> int | None:
    """The first signal that came and waits for a boundary."""
    return _asked[0] if _asked else None


@contextmanager
def held(hold: bool = True) -> Iterator[None]:
    """Within it signals are noted; with hold=False, inside another one, they are raised again where they come."""
    before = _held[0]
    _held[0] = hold
    try:
        if not hold and _asked:
            raise Stopped(_asked[0])
        yield
    finally:
        _held[0] = before
