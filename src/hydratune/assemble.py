"""Configuration to objects to a run: the only file besides cli.py and sweep/ that knows hydra or omegaconf."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydratune import construct

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMPONENTS = ("model", "optimizer", "schedule", "dataset", "freeze", "runtime", "engine")


@dataclass(frozen=True)
class Job:
    """One run to be made, as plain values."""

    config: Mapping[str, Any]  # resolved
    directory: Path
    choices: Mapping[str, str]  # config group -> option, for names and HParams
    overrides: Sequence[str]  # as typed, unresolved
    text: str  # the composed configuration, unresolved
    trust: Sequence[str]
    sweep: bool = False


def config_directory() -> Path:
    """conf/ inside the installed package, or beside src/ in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def run_from_hydra(config: DictConfig, trust: Sequence[str]) -> float:
    """One job of Hydra's; returns the validation metric, which sweepers maximise."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    job = Job(
        config=cast(dict[str, Any], plain),
        directory=Path(hydra.runtime.output_dir),
        choices={k: str(v) for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")},
        overrides=list(hydra.overrides.task),
        text=OmegaConf.to_yaml(config, resolve=False),
        trust=trust,
        sweep=hydra.mode == RunMode.MULTIRUN,
    )
    validate(job)
    # torch is loaded only now: what the configuration got wrong has been said.
    from hydratune.job import run_job

    return run_job(job).metric


def validate(job: Job) -> None:
    """All that can be refused before data or torch is loaded. Raises ValueError."""
    config = job.config
    pretrain = config["pretrain"] if config["init_from"] == "auto" else {}
    for where, node in (("", config), ("pretrain.", pretrain)):
        for name in COMPONENTS:
            if name in node:
                ignored = {k: v for k, v in node[name].items() if name != "freeze" or v is not None}
                if name == "freeze":
                    ignored = without_foreign_keys(ignored, job.sweep)
                construct.check(ignored, where + name, job.trust)
        for key in ("epochs", "steps", "batch_size"):
            if key in node and node[key] is not None:
                value = node[key]
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise ValueError(f"{where}{key}={value}: must be a whole number, at least 1")
    if not isinstance(config["seed"], int):
        raise ValueError(f"seed={config['seed']}: must be a whole number")
    if config["stage"] not in ("pretrain", "finetune"):
        raise ValueError(f"stage={config['stage']}: {construct.nearest(config['stage'], ['pretrain', 'finetune'])}")
    if config["steps"] is None and config["epochs"] is None:
        raise ValueError("steps or epochs must be given")


def without_foreign_keys(freeze: Mapping[str, Any], sweep: bool) -> dict[str, Any]:
    """The keys that the strategy has. A foreign one is refused in a single run; a sweep has it for another strategy."""
    given = {k: v for k, v in freeze.items() if v is not None}
    if not sweep:
        return given
    return {k: v for k, v in given.items() if k == construct.TARGET or construct.accepts(given, k)}


def known_keys(choices: Sequence[str]) -> list[str]:
    """Dotted names of every key and group that a command line may set."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    def walk(node: Any, where: str) -> list[str]:
        names = []
        for key in node:
            names.append(f"{where}{key}")
            child = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
            if isinstance(child, dict):
                names += walk(OmegaConf.create(child), f"{where}{key}.")
        return names

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        for overrides in (list(choices), []):
            try:
                config = compose("config", overrides=overrides)
                break
            except Exception:  # a wrong choice among them: the plain configuration then
                continue
    assert isinstance(config, DictConfig)
    groups = [p.name for p in config_directory().iterdir() if p.is_dir() and p.name != "hydra"]
    return [n for n in walk(config, "") if not n.endswith("_target_")] + groups


def command_line() -> str:
    """What the user typed, to be typed again."""
    return shlex.join(["hydratune", *sys.argv[1:]])
