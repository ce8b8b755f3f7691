"""The command line before Hydra reads it, and its errors after."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import format_exception

from hydratune.errors import disk_is_full, explain, unforeseen
from hydratune.markup import as_shown
from hydratune.overrides import config_dir_flags, quoted, refuse_name

FULL = "HYDRA_FULL_ERROR"
PATIENCE = 10.0  # seconds that a process waits for another one to say what is wrong


def prepare(arguments: Sequence[str]) -> list[str]:
    """`resume=DIR` becomes DIR's stored overrides, then the later arguments, then hydra.run.dir=DIR.

    Done here because Hydra would otherwise write a new record over DIR's own before anyone could read it or refuse.
    `trust` is not taken over: code is trusted only by typing it.
    """
    arguments = [_at_home(a) for a in arguments]
    multirun = bool({"-m", "--multirun"}.intersection(arguments))
    if company_size() > 1 and multirun:
        raise ValueError(
            "a sweep under torchrun: torchrun makes several processes one run, a sweep places its jobs itself. Without "
            "torchrun `hydratune -m ...` runs one job per GPU (sweep.jobs); or torchrun each job alone"
        )
    for typed in (a.partition("=")[2].strip("'\"") for a in arguments if re.match(r"\+{0,2}name=", a)):
        if "${" not in typed:  # said before Hydra makes the directory
            refuse_name(typed)
    found = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not found or found[-1] in ("auto", "null"):
        # Nothing is trained, so no directory is made; of several processes the first one has it.
        dry = ("dry_run=true" in arguments and not multirun) or rank() > 0
        return [*arguments, *(["hydra.run.dir=.", "hydra.output_subdir=null"] if dry else [])]
    directory = Path(found[-1]).expanduser()
    record = directory / ".hydra" / "overrides.yaml"
    if not record.is_file():
        raise ValueError(f"resume={directory}: no run directory (it should hold .hydra/overrides.yaml)")
    if multirun:
        raise ValueError("resume=DIR goes on with one run; a sweep goes on with resume=auto and its hydra.sweep.dir")
    import yaml

    # The record may be anybody's: no flag, nothing of Hydra's own (its callbacks run code), and no trust out of it.
    read = [o for o in yaml.safe_load(record.read_text()) or [] if isinstance(o, str)]
    stored = [o for o in read if _harmless(o)]
    later = [a for a in arguments if not a.startswith("resume=")]
    if not config_dir_flags(arguments) and (home := _config_dir_of(directory)):
        raise ValueError(
            f"resume={directory}: this run was started with --config-dir={home}; type that too, as it is believed to "
            "nobody's record"
        )
    own = [f"hydra.run.dir={quoted(str(directory))}", "resume=auto", "hydra.output_subdir=null"]
    return [*stored, *later, *own]


def _config_dir_of(directory: Path) -> str | None:
    """What the command that began a run named, as its record says."""
    try:
        flags = config_dir_flags(shlex.split(json.loads((directory / "run.json").read_text()).get("command") or ""))
    except (OSError, ValueError, AttributeError):
        return None
    return flags[-1].removeprefix("--config-dir=") if flags else None


def _at_home(argument: str) -> str:
    """`key=~/x`: shells take ~ for the home at the beginning of a word alone, and Hydra's grammar does not have it."""
    key, _, value = argument.partition("=")
    if key in ("", "resume") or not re.fullmatch(r"~[^,'\"\[\](){}]*(,~[^,'\"\[\](){}]*)*", value):
        return argument
    return f"{key}={','.join(quoted(os.path.expanduser(path)) for path in value.split(','))}"


def _harmless(override: str) -> bool:
    """Whether a stored override names a key of ours, and one of our options where the key is a group.

    Not trust, not Hydra's own node in whatever way, no option that is a path to another file.
    """
    from hydratune.assemble import config_directory

    key, _, value = override.partition("=")
    if not re.fullmatch(r"[+~]*(?!trust\b|resume\b|hydra\b)[A-Za-z][\w.@]*", key, re.ASCII) or ".." in key:
        return False
    if re.search(r"@(hydra|_global_|_here_)", key):
        return False
    group = (config_directory() / key.lstrip("+~").partition("@")[0].replace(".", "/")).is_dir()
    return not group or bool(re.fullmatch(r"[\w,\[\] -]*", value, re.ASCII))


def company_size() -> int:
    """Of the processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if company_size() > 1 else 0


def trusted(arguments: Sequence[str]) -> list[str]:
    """Packages typed as trust=[a,b] or trust=a. A configuration file cannot say this: it could be anybody's."""
    typed = [a.partition("=")[2] for a in arguments if re.match(r"\+{0,2}trust=", a)]
    return [name for name in re.split(r"[\[\],'\"\s]+", typed[-1]) if name] if typed else []


def wants_traceback(arguments: Sequence[str]) -> bool:
    """debug=default or HYDRA_FULL_ERROR=1"""
    return os.environ.get(FULL, "0") not in ("", "0") or "debug=default" in arguments


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
            said = text if text is not None else unforeseen(error, trusted(arguments), run)
            print(as_shown(f"{f'rank {rank()}: ' if rank() else ''}error: {said}"), file=sys.stderr)
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
    launcher = sys.modules.get("hydratune.sweep.launcher")
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
    launcher = sys.modules.get("hydratune.sweep.launcher")
    if launcher is None:
        return
    try:
        launcher.conclude()
    except launcher.JobFailed as error:
        if not failed:
            raise
        print(as_shown(f"error: {error}"), file=sys.stderr)
