"""Who has a run directory: an advisory lock that the kernel drops with its process, so no stale one stays behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydratune.record.screen import Screen


def claim(directory: Path) -> int:
    """The descriptor that holds the directory until it is closed."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ValueError(f"{directory} is in use by another live run") from None
    return descriptor


def take_over(directory: Path) -> None:
    """From a process that has fallen silent, perhaps on another machine: the claim that it holds is one of a file that
    is gone, and it ends where it would write again.
    """
    fresh = directory / f".lock.{os.getpid()}"
    fresh.touch()
    os.replace(fresh, directory / ".lock")


def is_ours(descriptor: int, directory: Path) -> bool:
    """Whether nobody has taken over what the descriptor claims."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory / ".lock"))
    except FileNotFoundError:
        return True


def is_claimed(directory: Path) -> bool:
    """Whether a live process has the directory."""
    try:
        with open(directory / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_for_release(directories: Sequence[Path], seconds: float) -> None:
    """Until no live process has one of the directories, or so long in all."""
    deadline = time.monotonic() + seconds
    while any(map(is_claimed, directories)) and time.monotonic() < deadline:
        time.sleep(0.1)


@contextmanager
def locked(path: Path, screen: Screen, waiting: str) -> Iterator[None]:
    """One process at a time; the others wait, and say so. The kernel lets go of it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            screen.line(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
