"""The command line before Hydra reads it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydratune.config.compose import config_directory
from hydratune.config.overrides import config_dir_flags, quoted, refuse_name

FULL = "HYDRA_FULL_ERROR"


def prepare(arguments: Sequence[str]) -> list[str]:
    """`resume=DIR` becomes DIR's stored overrides, then the later arguments, then hydra.run.dir=DIR.

    Done here because Hydra would otherwise write a new record over DIR's own before anyone could read it or refuse.
    `trust` is not taken over: code is trusted only by typing it.
    """
    arguments = [_at_home(a) for a in arguments]
    multirun = bool({"-m", "--multirun"}.intersection(arguments))
    if world_size() > 1 and multirun:
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
    key, _, value = override.partition("=")
    if not re.fullmatch(r"[+~]*(?!trust\b|resume\b|hydra\b)[A-Za-z][\w.@/]*", key, re.ASCII) or ".." in key:
        return False
    if re.search(r"@(hydra|_global_|_here_)", key):
        return False
    named = key.lstrip("+~").partition("@")[0]
    group = "/" in named or (config_directory() / named.replace(".", "/")).is_dir()
    return not group or bool(re.fullmatch(r"[\w,\[\] -]*", value, re.ASCII))


def world_size() -> int:
    """Of the processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def wants_traceback(arguments: Sequence[str]) -> bool:
    """debug=default or HYDRA_FULL_ERROR=1"""
    return os.environ.get(FULL, "0") not in ("", "0") or "debug=default" in arguments
