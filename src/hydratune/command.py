"""The command line before Hydra reads it, and its errors after."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import format_exception

from hydratune.markup import as_shown
from hydratune.overrides import quoted, refuse_name

FULL = "HYDRA_FULL_ERROR"
PATIENCE = 10.0  # seconds that a process waits for another one to say what is wrong


def prepare(arguments: Sequence[str]) -> list[str]:
    """`resume=DIR` becomes DIR's stored overrides, then the later arguments, then hydra.run.dir=DIR.

    Done here because Hydra would otherwise write a new record over DIR's own before anyone could read it or refuse.
    `trust` is not taken over: code is trusted only by typing it.
    """
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
    return [*stored, *later, f"hydra.run.dir={quoted(str(directory))}", "resume=auto", "hydra.output_subdir=null"]


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
            print(f"interrupted{name}{_goes_on(run)}", file=sys.stderr)
        sys.exit(getattr(stopped, "status", 130))
    except Exception as error:
        text = explain(error, arguments)
        if traceback or text is None:
            if not leave:
                raise
            # what an error of another one's code says may hold what is written nowhere
            print(as_shown("".join(format_exception(error))), end="", file=sys.stderr)
            sys.exit(1)
        if not quiet:
            print(as_shown(f"{f'rank {rank()}: ' if rank() else ''}error: {text}"), file=sys.stderr)
        if not leave:
            raise
        if quiet:  # torchrun ends the others as soon as one has ended; let the one that says it come first
            with suppress(KeyboardInterrupt):
                time.sleep(PATIENCE)
        sys.exit(2)


def _goes_on(run: str | None) -> str:
    if run is not None:
        return f"; hydratune resume={shlex.quote(run)} goes on from the last checkpoint"
    launcher = sys.modules.get("hydratune.sweep.launcher")
    sweeps = launcher.directories() if launcher is not None else ()
    return "".join(f"; the same command with hydra.sweep.dir={shlex.quote(str(d))} goes on" for d in sweeps)


def leave() -> None:
    """End the process, all being written: torch would take most of a second to take itself apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def conclude_sweeps() -> None:
    """The winner's test and the report, once the sweeper is through, also where jobs have failed."""
    launcher = sys.modules.get("hydratune.sweep.launcher")
    if launcher is not None:
        launcher.conclude()


def explain(error: BaseException, arguments: Sequence[str]) -> str | None:
    """What the user should know; None for a fault of ours, which deserves its traceback."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    foreign = next((e for e in chain if type(e).__module__.partition(".")[0] in ("hydra", "omegaconf")), None)
    if foreign is not None:
        return _hydra(chain, arguments)
    own = chain[0]
    if type(own) is ValueError or type(own).__name__ in ("NonFinite", "JobFailed", "NotSaved"):
        return str(own)
    if isinstance(own, OSError) and own.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{own}; what was saved before is as it was, and resume goes on from there"
    if isinstance(own, RuntimeError) and "out of memory" in str(own):
        return f"{str(own).splitlines()[0]}; a smaller batch_size, or engine.accumulate=2, needs less"
    return None


# Hydra's plugins that hydratune has as extras: option -> extra
PLUGINS = {
    "hydra/sweeper": {"optuna": "optuna"},
    "hydra/launcher": {"submitit_slurm": "submitit", "submitit_local": "submitit", "joblib": "joblib", "ray": "ray"},
}


def _hydra(chain: Sequence[BaseException], arguments: Sequence[str]) -> str:
    """Hydra's and OmegaConf's messages, with the key, the value and the nearest right name."""
    text = "\n".join(str(e) for e in chain)
    typed = next((a for a in arguments if re.search(rf"'{re.escape(a.lstrip('+~').partition('=')[0])}'", text)), None)
    if found := re.search(
        r"Could not find '([\w/@.]+)/([^'/]+)'\s+Available options in '([^']+)':\s*((?:\s*\S+\n?)+)", text
    ):
        group, option, _, listed = found.groups()
        for plugins, extras in PLUGINS.items():
            if (group == plugins and option in extras) or group.startswith(f"{plugins}/"):
                named = option if group == plugins else "optuna"
                return f"{plugins}={named}: pip install 'hydratune[{extras[named]}]' brings it"
        options = [o for o in re.findall(r"^\s*([\w.-]+)\s*$", listed, re.M) if not o.startswith("_")]
        return f"{group}={option}: no such option; {_near(option, options)}"
    if found := re.search(r"Could not override '([^']+)'\.? ?(?:\s*No match in the defaults list)", text):
        key = found.group(1)
        return f"{typed or key}: no such key; {_near(key, _known_keys())}"
    if "Missing mandatory value" in text:
        missing = re.search(r"full_key: ([\w.]+)", text) or re.search(r"Missing mandatory value: ([\w.]+)", text)
        key = missing.group(1) if missing else "a value"
        return f"{key} is not given; add {key}=..."
    if found := re.search(r"full_key: ([\w.\[\]@]+)", text):
        key = found.group(1)
        if "not in struct" in text or "Could not override" in text:
            return f"{typed or key}: no such key; {_near(key, _known_keys(arguments))}"
        first = next(str(e) for e in reversed(chain)).splitlines()[0]
        return f"{typed or key}: {first}"
    lines = [line.strip() for line in str(chain[0]).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _near(word: str, known: Sequence[str]) -> str:
    tail = word.rpartition(".")[2]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [k for k in known if k.rpartition(".")[2] == tail][:1]
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    if near:
        return f"nearest: {near[0]}"
    return f"known: {', '.join(known[:12])}" if known else "see --help"


def _known_keys(arguments: Sequence[str] = ()) -> list[str]:
    """Every key of the configuration that the command line's group choices compose."""
    from hydratune.assemble import known_keys

    choices = [
        a for a in arguments if re.fullmatch(r"(model|optimizer|schedule|dataset|freeze|engine|runtime|stage)=[\w]+", a)
    ]
    return known_keys(choices)
