"""Configuration to objects to a run: the only file besides cli.py and sweep/ that knows hydra or omegaconf."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydratune import construct, secrets
from hydratune.keys import COMPONENTS, check_keys
from hydratune.overrides import refuse_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

# keys of conf/freeze/_base.yaml that no strategy sees, and what they may be
OF_EVERY_STRATEGY = {"norm": ("frozen", "statistics", "affine"), "cache": ("auto", "off", "memory", "disk")}


@dataclass(frozen=True, eq=False)
class Job:
    """One run to be made, as plain values."""

    config: Mapping[str, Any]  # resolved
    directory: Path
    choices: Mapping[str, str]  # config group -> option, for names and HParams
    overrides: Sequence[str]  # as typed, unresolved
    text: str  # the composed configuration, unresolved
    trust: Sequence[str]
    command: str = ""  # what was typed, to be typed again
    sweep: bool = False
    asked: str = ""  # fingerprint of what was asked for, by which a sweep knows its jobs again
    secrets: Sequence[str] = ()  # values out of the environment, which are written nowhere
    halt: float | None = None  # share of its steps at which a sweep halts it, to see who goes on
    numerics: Mapping[str, Any] = field(default_factory=dict)  # threads and precision, as far as a sweep settled them

    @property
    def reads_test(self) -> bool:
        """Whether the test split is read at its end."""
        wanted = self.config["test"]
        return wanted is True or (wanted == "auto" and not self.sweep)


def from_environment(name: str, *default: Any) -> Any:
    """OmegaConf's oc.env; what it finds is used and written nowhere."""
    from omegaconf.resolvers import oc

    if name in os.environ:
        secrets.learn_variable(name, os.environ[name])
    return oc.env(name, *default)


def config_directory() -> Path:
    """conf/ inside the installed package, or beside src/ in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def in_sweep() -> bool:
    """Whether Hydra is running this job as one of many."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_from_hydra(config: DictConfig, arguments: Sequence[str], trust: Sequence[str]) -> float:
    """One job of Hydra's; returns the validation metric, which sweepers maximise."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    sweep = in_sweep() or _was_in_sweep(directory)
    job = make_job(config, hydra.runtime.choices, hydra.overrides.task, directory, arguments, trust, sweep)
    validate(job)
    # torch is loaded only now: what the configuration got wrong has been said.
    from hydratune.company import company, from_first, launched
    from hydratune.job import run_job

    if not launched():
        return run_job(job).metric
    with company():  # one configuration, the first process's: its directory's name is a time
        return run_job(from_json(json.loads(from_first(json.dumps(as_json(job), default=str))))).metric


def as_json(job: Job) -> dict[str, Any]:
    return {**vars(job), "directory": str(job.directory)}


def from_json(values: Mapping[str, Any]) -> Job:
    secrets.learn(values["secrets"])
    return Job(**{**values, "directory": Path(values["directory"])})


def make_job(
    config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str], directory: Path,
    arguments: Sequence[str], trust: Sequence[str], sweep: bool,
) -> Job:  # fmt: skip
    """The job that a composed configuration, without its hydra node, describes."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return Job(
        config=cast(dict[str, Any], plain),
        directory=directory,
        choices={k: str(v) for k, v in choices.items() if not k.startswith("hydra/")},
        overrides=list(overrides),
        text=OmegaConf.to_yaml(config, resolve=False),
        trust=list(trust),
        command=shlex.join(["hydratune", *arguments]),
        sweep=sweep,
        secrets=secrets.known(),
    )


def _was_in_sweep(directory: Path) -> bool:
    """A job of a sweep that is resumed alone is still one: foreign freeze keys and the test split are not its own."""
    record = directory / "run.json"
    return record.is_file() and bool(json.loads(record.read_text()).get("sweep"))


def validate(job: Job) -> None:
    """All that can be refused before data or torch is loaded. Raises ValueError."""
    config = job.config
    check_keys(config, job.choices, config_directory())
    pretrain = config["pretrain"] if config["init_from"] == "auto" else {}
    for where, node in (("", config), ("pretrain.", pretrain)):
        for name in COMPONENTS:
            if name in node:
                own = node[name]
                if name == "freeze":
                    _check_freeze_keys(own)
                    own = strategy_node(own, job.sweep, job.trust)
                    _refuse_keys_of_others(own)
                construct.check(own, where + name, job.trust)
        if node:
            _validate_numbers(where, node)
    construct.check(config["sweep"], "sweep", job.trust)
    _validate_init(config)
    origin = config["init_from"]
    if origin is not None and not isinstance(origin, str):
        raise ValueError(f"init_from={origin}: must be null, auto or a path")
    # a resumed run has all that it needs
    path = origin.removeprefix("best:") if origin and origin != "auto" and config["resume"] is None else "."
    if not Path(path).expanduser().exists():
        raise ValueError(f"init_from={origin}: no such run directory, checkpoint or file of tensors")
    construct.construct(config["engine"], "engine", job.trust)  # light: its values are looked at before torch is loaded
    for key, options in OF_EVERY_STRATEGY.items():
        if (value := config["freeze"].get(key)) not in (None, *options):
            raise ValueError(f"freeze.{key}={value}: {construct.nearest(str(value), options)}")
    if not isinstance(config["dry_run"], bool):
        raise ValueError(f"dry_run={config['dry_run']}: must be true or false")
    refuse_name(str(config["name"]))
    if config["test"] not in (True, False, "auto"):
        raise ValueError(f"test={config['test']}: must be auto, true or false")
    if config["resume"] not in (None, "auto"):
        raise ValueError(f"resume={config['resume']}: must be auto, or a run directory typed on the command line")
    if not isinstance(config["outputs"], str) or not config["outputs"]:
        raise ValueError(f"outputs={config['outputs']}: must be a directory")


def _validate_init(config: Mapping[str, Any]) -> None:
    """The keys that say how weights are taken over."""
    for key in ("init_share", "init_unused"):
        share = config[key]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"{key}={share}: must be a share between 0 and 1")
    if config["init_head"] not in (True, False, "auto"):
        raise ValueError(f"init_head={config['init_head']}: must be auto, true or false")
    for key in ("init_key", "init_prefix"):
        if config[key] is not None and not isinstance(config[key], str):
            raise ValueError(f"{key}={config[key]}: must be a word or null")
    names = config["init_map"]
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(f"init_map={names}: must be a mapping of names, such as {{linear: fc}}")


def _validate_numbers(where: str, node: Mapping[str, Any]) -> None:
    for key in ("epochs", "steps", "batch_size", "seed"):
        value, least = node[key], 0 if key == "seed" else 1
        if value is None and key in ("epochs", "steps"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{where}{key}={value}: must be a whole number, at least {least}")
    if node["steps"] is None and node["epochs"] is None:
        raise ValueError(f"{where}epochs or {where}steps must be given")


def strategy_node(freeze: Mapping[str, Any], sweep: bool, trust: Sequence[str] = ()) -> dict[str, Any]:
    """What the strategy's constructor is given: not the keys of every strategy, which the phases and the loop take.

    A key foreign to the strategy is refused in a single run; a sweep has it for another strategy.
    """
    given = {k: v for k, v in freeze.items() if v is not None and k not in OF_EVERY_STRATEGY}
    if not sweep:
        return given
    return {k: v for k, v in given.items() if k == construct.TARGET or construct.accepts(given, k, trust)}


def _check_freeze_keys(freeze: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that no strategy of ours has, typed or not, null or not."""
    import yaml

    known = [construct.TARGET, *yaml.safe_load((config_directory() / "freeze" / "_base.yaml").read_text())]
    if str(freeze[construct.TARGET]).startswith("hydratune."):
        for key, value in freeze.items():
            if key not in known:
                raise ValueError(f"freeze.{key}={value}: no such key; {construct.nearest(key, known[1:])}")


def _refuse_keys_of_others(strategy: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that another strategy has, naming those that do."""
    if not str(strategy.get(construct.TARGET)).startswith("hydratune."):
        return
    for key in strategy.keys() - {construct.TARGET}:
        if construct.accepts(strategy, key):
            continue
        files = sorted((config_directory() / "freeze").glob("*.yaml"))
        targets = {f.stem: re.search(r"^_target_: (\S+)", f.read_text(), re.M) for f in files}
        owners = [o for o, found in targets.items() if found and construct.accepts({construct.TARGET: found[1]}, key)]
        if owners:
            named = " or ".join(f"freeze={owner}" for owner in owners)
            raise ValueError(f"freeze.{key}={strategy[key]}: no such key of this strategy; it belongs to {named}")


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
