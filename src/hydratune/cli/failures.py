"""How the command ends: a sentence for what went wrong, and the sweeps' last words."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import format_exception
from typing import Any

from hydratune.cli.arguments import rank
from hydratune.config.errors import disk_is_full, explain, unforeseen
from hydratune.config.trust import trusted
from hydratune.core.markdown import as_shown

PATIENCE = 10.0  # seconds that a process waits for another one to say what is wrong


@contextmanager
def readable_errors(
    arguments: Sequence[str], traceback: bool, leave: bool = True, quiet: bool = False, run: str | None = None
) -> Iterator[None]:
    """One or two lines for what a user can mend; everything where a traceback is wanted, or the fault is ours.

    leave: end the process with status 2; else the error goes on to whoever counts it. quiet: another process says it.
    run: directory of the one that this is about.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        name = "" if str(stopped) in ("", "SIGINT") else f" by {stopped}"
        if not quiet:
            print(as_shown(f"interrupted{name}{_goes_on(run)}"), file=sys.stderr)
        sys.exit(getattr(stopped, "status", 130))
    except Exception as error:
        text = explain(error, arguments)
        if not leave and (traceback or text is None):
            raise
        if traceback:  # what an error of another one's code says may hold what is written nowhere
            print(as_shown("".join(format_exception(error))), end="", file=sys.stderr)
            sys.exit(1 if text is None else 2)
        if not quiet or text is None:
            message = text if text is not None else unforeseen(error, trusted(arguments), run)
            print(as_shown(f"{f'rank {rank()}: ' if rank() else ''}error: {message}"), file=sys.stderr)
        if not leave:
            raise
        if run is not None:
            _tidy(Path(run))
        if text is None:
            sys.exit(1)
        if quiet:  # torchrun ends the others as soon as one has ended; let the one that says it come first
            with suppress(KeyboardInterrupt):
                time.sleep(PATIENCE)
        sys.exit(2)


@contextmanager
def in_a_line() -> Iterator[None]:
    """For the lighter commands: a line for what a user can mend, and status 2."""
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough
        raise
    except (ValueError, OSError) as error:
        print(as_shown(f"error: {explain(error, sys.argv[1:]) or error}"), file=sys.stderr)
        sys.exit(2)


def _tidy(directory: Path) -> None:
    """A directory in which nothing has begun goes again, and what was made for it: Hydra makes it before it asks us."""
    with suppress(OSError):
        if {p.name for p in directory.iterdir()} == {".hydra"} and directory.resolve() != Path.cwd():
            shutil.rmtree(directory)
            for parent in directory.parents[:3]:
                parent.rmdir()  # unless there is something else


def _goes_on(run: str | None) -> str:
    if run is not None and not (Path(run) / "run.json").is_file():
        return ""
    if run is not None:
        return f"; hydratune resume={shlex.quote(run)} goes on from the last checkpoint"
    launcher = _launcher()
    sweeps = launcher.directories() if launcher is not None else ()
    return "".join(f"; the same command with hydra.sweep.dir={shlex.quote(str(d))} goes on" for d in sweeps)


def thread_failed(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread; that the disk is full is told by the next one who writes."""
    if not disk_is_full(failed.exc_value):
        print(as_shown("".join(format_exception(failed.exc_value))), end="", file=sys.stderr)


def leave() -> None:
    """End the process, all being written: torch would take most of a second to take itself apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def conclude_sweeps(failed: bool = False) -> None:
    """The winner's test and the report, once the sweeper is through.

    failed: whether jobs have, and what is raised next says so; what fails here as well is then only told.
    """
    launcher = _launcher()
    if launcher is None:
        return
    try:
        launcher.conclude()
    except launcher.JobFailed as error:
        if not failed:
            raise
        print(as_shown(f"error: {error}"), file=sys.stderr)


def _launcher() -> Any:
    """The launcher of sweeps, where this command has come that far; loading it only to ask would take a second."""
    return sys.modules.get("hydratune.sweep.launcher")
