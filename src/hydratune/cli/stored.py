"""What a run stored of its own command line, composed before what is typed to use it: evaluate, predict, export."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydratune.config.compose import config_directory
from hydratune.config.groups import USING
from hydratune.config.origin import run_of
from hydratune.config.overrides import config_dir_flags, split_override

# Keys that say what a network is, what it is given and asked. The others said how it was trained.
KEPT = ("model", "dataset", "batch_size", "seed", "experiment")
GROUPS = ("model", "dataset")


def stage_of(arguments: Sequence[str]) -> str:
    """The stage that is typed; empty where none is."""
    return next((a.partition("=")[2] for a in reversed(arguments) if re.match(r"\+{0,2}stage=", a)), "")


def with_stored(arguments: Sequence[str]) -> list[str]:
    """The arguments of evaluate, predict or export behind what the run of `init_from` stored; others as they are.

    Raises ValueError where there is no `init_from`, or where it belongs to no run and nothing says what it is of.
    """
    stage = stage_of(arguments)
    if stage not in USING:
        return list(arguments)
    if {"-m", "--multirun"}.intersection(arguments):
        raise ValueError(f"stage={stage}: is one job at a time, and no sweep")
    typed = {split_override(a)[0]: split_override(a)[1] for a in arguments if "=" in a}
    origin = typed.get("init_from", "").strip("'\"")
    if origin in ("", "null", "auto"):
        raise ValueError(
            f"stage={stage}: init_from= a run directory, best:<sweep directory>, a checkpoint or a file of tensors"
        )
    run = run_of(origin)
    if run is None:
        if "experiment" not in typed and not {"model", "dataset"} <= typed.keys():
            raise ValueError(
                f"init_from={origin}: is of no run, so that nothing says what it is; model= and dataset= would"
            )
        return list(arguments)
    refuse_other_config_dir(run, arguments, "init_from")
    return [*_stored(run, typed, evals=stage == "evaluate"), *arguments]


def _stored(run: Path, typed: Mapping[str, str], evals: bool) -> list[str]:
    """Of the run's overrides those that still matter, its groups' options first where nothing names them.

    evals: whether its evaluation sets do.
    """
    home = _recorded(run)
    kept = [o for o in overrides_of(home) if _matters(split_override(o)[0], evals)]
    choices = _choices(home)
    if "dataset" in typed and typed["dataset"] != _last(kept, "dataset", choices.get("dataset", "")):
        # another data set has other keys; what is asked of it stays
        kept = [o for o in kept if not re.match(r"dataset(=|\.(?!task\b))", o.lstrip("+~"))]
    named = {split_override(o)[0] for o in kept} | typed.keys()
    missing = [f"{group}={choices[group]}" for group in GROUPS if group in choices and group not in named]
    return [*([] if "experiment" in typed else missing), *kept]


def _matters(key: str, evals: bool) -> bool:
    root = re.split(r"[./@]", key)[0]
    if "@" in key or root == "evals":
        return evals and (root == "evals" or "@evals." in key)
    return root in KEPT


def _recorded(run: Path) -> Path:
    """The directory with the record of a command line: a soup has that of the jobs that it was made of."""
    if (run / ".hydra").is_dir():
        return run
    try:
        made_of = str(json.loads((run / "run.json").read_text())["lineage"]["of"][0])
        if Path(made_of).name != made_of:
            raise ValueError(made_of)
        return run.parent / made_of
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ValueError(f"init_from={run}: holds no .hydra/overrides.yaml, which says what it is") from None


def _last(overrides: Sequence[str], key: str, otherwise: str) -> str:
    return next((value for k, value in map(split_override, reversed(overrides)) if k == key), otherwise)


def _choices(run: Path) -> dict[str, str]:
    """Config group -> option, as Hydra has recorded it; only plain names of ours."""
    import yaml

    path = run / ".hydra" / "hydra.yaml"
    try:
        found = yaml.safe_load(path.read_text())["hydra"]["runtime"]["choices"]
        return {k: v for k, v in found.items() if isinstance(v, str) and re.fullmatch(r"[\w-]+", v, re.ASCII)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


# ---- a run directory's record may be anybody's


def overrides_of(run: Path) -> list[str]:
    """No flag, nothing of Hydra's own (its callbacks run code), and no trust."""
    import yaml

    record = run / ".hydra" / "overrides.yaml"
    read: Any = yaml.safe_load(record.read_text()) if record.is_file() else []
    return [o for o in read or [] if isinstance(o, str) and _harmless(o)]


def longer(run: Path) -> list[str]:
    """What was typed since to have it run on to another number of epochs or steps."""
    try:
        known = json.loads((run / "run.json").read_text())["overrides"]
        return [o for o in known if isinstance(o, str) and re.fullmatch(r"(epochs|steps)=(\d+|null)", o)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


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


def refuse_other_config_dir(run: Path, arguments: Sequence[str], key: str) -> None:
    """Raises ValueError where the run was begun with a --config-dir that is not typed now."""
    try:
        flags = config_dir_flags(shlex.split(json.loads((run / "run.json").read_text()).get("command") or ""))
    except (OSError, ValueError, AttributeError):
        return
    if flags and not config_dir_flags(arguments):
        home = flags[-1].removeprefix("--config-dir=")
        raise ValueError(
            f"{key}={run}: this run was started with --config-dir={home}; type that too, as it is believed to "
            "nobody's record"
        )
