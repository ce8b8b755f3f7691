"""From what Hydra composes to a job."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydratune.config.aliases import upgraded
from hydratune.config.job import Job, JobConfig
from hydratune.config.keys import check_keys
from hydratune.core import secrets

if TYPE_CHECKING:
    from omegaconf import DictConfig


def from_environment(name: str, *default: Any) -> Any:
    """OmegaConf's oc.env; what it finds is used and written nowhere."""
    from omegaconf.resolvers import oc

    if name in os.environ:
        secrets.learn_variable(name, os.environ[name])
    return oc.env(name, *default)


def config_directory() -> Path:
    """conf/ inside the installed package, or beside src/ in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def in_sweep() -> bool:
    """Whether Hydra is running this job as one of many."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def make_job(
    config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], directory: Path,
    arguments: Sequence[str], trust: Sequence[str], sweep: bool,
) -> Job:  # fmt: skip
    """The job that a composed configuration, without its hydra node, describes.

    Raises ValueError for a key that nothing reads, and for one that is missing.
    """
    from omegaconf import OmegaConf

    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    chosen = {k: str(v) for k, v in choices.items() if not k.startswith("hydra/")}
    check_keys(plain, chosen, config_directory())
    return Job(
        config=JobConfig.read(upgraded(plain)),
        directory=directory,
        choices=chosen,
        overrides=list(overrides),
        text=OmegaConf.to_yaml(config, resolve=False),
        trust=list(trust),
        command=shlex.join(["hydratune", *arguments]),
        sweep=sweep or was_in_sweep(directory),
        secrets=secrets.known(),
    )


def was_in_sweep(directory: Path) -> bool:
    """A job of a sweep that is resumed alone is still one: foreign freeze keys and the test split are not its own."""
    record = directory / "run.json"
    return record.is_file() and bool(json.loads(record.read_text()).get("sweep"))


def known_keys(choices: Sequence[str]) -> list[str]:
    """Dotted names of every key and group that a command line may set."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    from hydratune.config.hydra_versions import initialize

    def walk(node: Any, where: str) -> list[str]:
        names = []
        for key in node:
            names.append(f"{where}{key}")
            child = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
            if isinstance(child, dict):
                names += walk(OmegaConf.create(child), f"{where}{key}.")
        return names

    GlobalHydra.instance().clear()
    with initialize(config_directory()):
        for overrides in (list(choices), []):
            try:
                config = compose("config", overrides=overrides)
                break
            except Exception:  # a wrong choice among them: the plain configuration then
                continue
    assert isinstance(config, DictConfig)
    groups = [p.name for p in config_directory().iterdir() if p.is_dir() and p.name != "hydra"]
    return [n for n in walk(config, "") if not n.endswith("_target_")] + groups
