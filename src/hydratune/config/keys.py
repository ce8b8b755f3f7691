"""Every key of a composed configuration, wherever it came from, is one that somebody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydratune.config.groups import COMPONENTS, STAGES
from hydratune.config.instantiate import nearest

SPLITS = ("train", "val", "test")  # what metrics are called after


@cache
def _primary(home: Path) -> Mapping[str, Any]:
    """conf/config.yaml as it is written: its keys are those that no group has."""
    import yaml

    return yaml.safe_load((home / "config.yaml").read_text(encoding="utf-8"))


def check_keys(config: Mapping[str, Any], choices: Mapping[str, str], home: Path) -> None:
    """Raises ValueError for a key that nothing reads, and for one that is missing. home: of hydratune's own YAML.

    Hydra refuses a misspelt key where it is typed; one that a file has, or that follows a +, it adds.
    """
    refuse_truths(config, "")
    primary = _primary(home)
    plain = [k for k in primary if k not in ("defaults", "hydra")]
    _check(config, [*plain, *COMPONENTS, "stage", "sweep", "search"], "")
    _check(config["pretrain"], [*primary["pretrain"], "dataset", "optimizer", "schedule", "engine"], "pretrain.")
    _check(config["predict"], list(primary["predict"]), "predict.")
    _check(config["pretrain"]["runtime"], list(primary["pretrain"]["runtime"]), "pretrain.runtime.")
    for where, node in (("", config), ("pretrain.", config["pretrain"])):
        for name in COMPONENTS:
            if name in node and (where, name) != ("pretrain.", "runtime"):
                _check_component(where + name, node[name])
    if not isinstance(config["evals"], Mapping):
        raise ValueError(
            f"evals={config['evals']}: must be data sets by name, such as +dataset@evals.shifted=image_folder"
        )
    for name, node in config["evals"].items():
        if name in SPLITS or not str(name).isidentifier():
            why = "validation itself is called so" if name == "val" else "is no name for an evaluation set"
            raise ValueError(f"evals.{name}: {why}; another name is free to choose")
        _check_component(f"evals.{name}", node)
    stage, chosen = config["stage"], choices.get("stage", config["stage"])
    if stage not in STAGES:
        raise ValueError(f"stage={stage}: {nearest(str(stage), STAGES)}")
    if stage != chosen and chosen in STAGES:
        raise ValueError(
            f"stage={stage}: a file says so as a value, while all that stage={chosen} chooses is in force; "
            f"`- override /stage: {stage}` in the file's defaults list chooses it"
        )


def refuse_truths(node: Any, where: str) -> None:
    """Raises ValueError for a key that YAML takes for true or false: on, off, yes and no are words in quotes only."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(key, bool):
                words = "on or yes" if key else "off or no"
                raise ValueError(
                    f"{where or 'the configuration'}: YAML takes the key {words} for {key}; put it in quotes"
                )
            refuse_truths(value, f"{where}.{key}".lstrip("."))


def _check(node: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(node, Mapping):
        raise ValueError(f"{where.rstrip('.')}={node}: must be a mapping")
    for key, value in node.items():
        if key in ("experiment", "debug") and not where and isinstance(value, Mapping):
            raise ValueError(f"{key}: the file chosen by {key}=... must begin with the line `# @package _global_`")
        if key not in known:
            message = f"={value}" if not isinstance(value, Mapping) else ""
            raise ValueError(f"{where}{key}{message}: no such key; {nearest(str(key), known)}")
    for key in known:
        if key not in node:
            raise ValueError(f"{where}{key}: is missing; every job needs it, so ~{where}{key} cannot be")


def _check_component(where: str, node: Any) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{where}={node}: must be one of the group's options, or a mapping with _target_")
