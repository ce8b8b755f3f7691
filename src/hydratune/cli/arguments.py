"""The command line before Hydra reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydratune.cli.stored import longer, overrides_of, refuse_other_config_dir, stage_of, with_stored
from hydratune.config.groups import USING
from hydratune.config.overrides import quoted, refuse_name

FULL = "HYDRA_FULL_ERROR"
# Mappings whose keys are the user's own; Hydra adds a key only behind a +
OPEN = re.compile(r"(init_map|sweep\.cluster|(pretrain\.)?optimizer\.options)(\.[^=]+)?=")


def prepare(arguments: Sequence[str]) -> list[str]:
    """`resume=DIR` becomes DIR's stored overrides, then the later arguments, then hydra.run.dir=DIR.

    Done here because Hydra would otherwise write a new record over DIR's own before anyone could read it or refuse.
    `trust` is not taken over: code is trusted only by typing it.
    """
    arguments = [opened(_at_home(a)) for a in arguments]
    multirun = bool({"-m", "--multirun"}.intersection(arguments))
    if world_size() > 1 and multirun:
        raise ValueError(
            "a sweep under torchrun: torchrun makes several processes one run, a sweep places its jobs itself. Without "
            "torchrun `hydratune -m ...` runs one job per GPU (sweep.jobs); or torchrun each job alone"
        )
    for typed in (a.partition("=")[2].strip("'\"") for a in arguments if re.match(r"\+{0,2}name=", a)):
        if "${" not in typed:  # said before Hydra makes the directory
            refuse_name(typed)
    if world_size() > 1 and (stage := stage_of(arguments)) in USING:
        raise ValueError(f"stage={stage}: is one process's work; without torchrun it runs")
    if not multirun:
        arguments = [as_list(a) for a in arguments]
    arguments = with_stored(arguments)
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
    stored = [*overrides_of(directory), *longer(directory)]
    later = [a for a in arguments if not a.startswith("resume=")]
    refuse_other_config_dir(directory, arguments, "resume")
    own = [f"hydra.run.dir={quoted(str(directory))}", "resume=auto", "hydra.output_subdir=null"]
    return [*stored, *later, *own]


def opened(argument: str) -> str:
    """As Hydra takes a key that is the user's own."""
    return f"++{argument}" if OPEN.match(argument) else argument


def as_list(argument: str) -> str:
    """What a single run may have several of; in a sweep each is a job of its own."""
    return re.sub(r"^(search\.simulations=)(\d+(?:,\d+)+)$", r"\1[\2]", argument)


def _at_home(argument: str) -> str:
    """`key=~/x`: shells take ~ for the home at the beginning of a word alone, and Hydra's grammar does not have it."""
    key, _, value = argument.partition("=")
    if key in ("", "resume") or not re.fullmatch(r"~[^,'\"\[\](){}]*(,~[^,'\"\[\](){}]*)*", value):
        return argument
    return f"{key}={','.join(quoted(os.path.expanduser(path)) for path in value.split(','))}"


def world_size() -> int:
    """Of the processes that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def wants_traceback(arguments: Sequence[str]) -> bool:
    """debug=default or HYDRA_FULL_ERROR=1"""
    return os.environ.get(FULL, "0") not in ("", "0") or "debug=default" in arguments
