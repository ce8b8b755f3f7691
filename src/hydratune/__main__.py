"""The command. Until a job begins there is nothing to save: a signal that comes before ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading

from hydratune.distributed.signals import SIGNALS


def main() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _leave)
    from hydratune.cli.main import main as run

    run()


def _leave(number: int, frame: object) -> None:
    """Without an exception, which would meet the libraries in the middle of what they compose."""
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    os.write(sys.stderr.fileno(), f"interrupted{by}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
