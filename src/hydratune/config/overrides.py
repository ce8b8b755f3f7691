"""Values and configurations in Hydra's override grammar."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from hydratune.config.groups import GROUPS
from hydratune.config.job import JobConfig
from hydratune.core.secrets import told_apart

PLACES = ("--config-dir", "-cd")  # what follows is a path, whatever stands in it
LONGEST = 200  # of a directory's name; file systems have 255 bytes, and what is being written has a longer one


def quoted(value: str) -> str:
    """A word that the grammar reads back as itself."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./:-]*", value) and value.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    )
    return value if plain else "'" + value.replace("'", "\\'") + "'"


def split_override(override: str) -> tuple[str, str]:
    """(key without + and ~, value)"""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same line, in the order that Hydra's parser wants: it takes overrides in one piece only."""
    overrides = {
        i for i, a in enumerate(arguments)
        if a[:1] != "-" and ("=" in a or a[:1] == "~") and arguments[max(i - 1, 0)] not in PLACES
    }  # fmt: skip
    return [a for i, a in enumerate(arguments) if i not in overrides] + [arguments[i] for i in sorted(overrides)]


def safe_name(name: str, longest: int = 120) -> str:
    """A directory name on every file system: other characters become `-`, and what is changed or cut gets a hash.

    A value out of the environment is told apart in it, and not told.
    """
    name = told_apart(name)
    safe = re.sub(r"[^A-Za-z0-9._=,-]+", "-", name)
    if safe == name and len(safe) <= longest:
        return safe
    return f"{safe[:longest]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def refuse_name(name: str, key: str = "name") -> None:
    """Raises ValueError for a run's name that is no directory's name."""
    if not re.fullmatch(r"[A-Za-z0-9._=,-]+", name) or set(name) == {"."}:
        raise ValueError(f"{key}={name}: letters, digits and . _ = , - only; it becomes a directory's name")
    if len(name) > LONGEST:
        raise ValueError(
            f"{key}={name[:30]}...: {len(name)} letters; at most {LONGEST}, as it becomes a directory's name"
        )


def literal(value: Any) -> str:
    """A value out of a configuration, to be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(literal(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{literal(v)}" for k, v in value.items()) + "}"
    return quoted(value) if isinstance(value, str) else repr(value)


def command_again(command: str, overrides: Sequence[str], freeze: Set[str], pinned: Sequence[str]) -> str:
    """To be typed for one job of a command, without what says where it lies and how a sweep is run.

    freeze: the keys that its strategy has; others are a sweep's, and refused in a single run. pinned: beats the rest.
    """
    flags = config_dir_flags(shlex.split(command))
    kept = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        foreign = key.startswith("freeze.") and key.removeprefix("freeze.") not in {*freeze, "norm", "cache"}
        if not foreign and not re.match(r"(name|resume|test)=|sweep[.=]|hydra[./]", override.lstrip("+~")):
            kept.append(override)
    beaten = {o.partition("=")[0] for o in pinned}
    return shlex.join(["hydratune", *flags, *(o for o in kept if o.partition("=")[0] not in beaten), *pinned])


def config_dir_flags(arguments: Sequence[str]) -> list[str]:
    """--config-dir and its value, in one word or two, as they were typed."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    return [a for a, before in pairs if a in PLACES or a.startswith("--config-dir=") or before in PLACES]


def as_overrides(config: JobConfig, choices: Mapping[str, str]) -> list[str]:
    """A command line that gives this configuration, for the run directory's record."""

    def leaves(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                if key != "_target_":
                    yield from leaves(value, f"{where}.{key}")
        else:
            yield f"++{where}={literal(node)}"

    named = [g.name for g in GROUPS if choices.get(g.name) and g.name != "freeze"]
    groups = [f"{name}={choices[name]}" for name in named]
    own = [g.name for g in GROUPS if g.name not in ("freeze", "runtime")]
    values = [value for name in own for value in leaves(config.component(name), name)]
    plain = [f"{key}={literal(getattr(config, key))}" for key in ("seed", "epochs", "steps", "batch_size", "outputs")]
    return ["stage=pretrain", *groups, *plain, *values, *leaves(config.runtime, "runtime")]
