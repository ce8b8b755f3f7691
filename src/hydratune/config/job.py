"""A job as plain values: what was composed, and where and how it runs. Nothing below reads a configuration by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hydratune.config.groups import COMPONENTS, GROUPS, INIT, INIT_LIMITS, SELFPLAY
from hydratune.config.instantiate import TARGET
from hydratune.core import secrets

Node = Mapping[str, Any]  # a component: `_target_` and the parameters of its constructor

# Keys of conf/freeze/_base.yaml that no strategy sees, and what they may be
OF_EVERY_STRATEGY = {"norm": ("frozen", "statistics", "affine"), "cache": ("auto", "off", "memory", "disk")}


@dataclass(frozen=True)
class PretrainConfig:
    """What init_from=auto pretrains: the keys of `pretrain`."""

    model: Node
    dataset: Node
    optimizer: Node
    schedule: Node
    engine: Node
    seed: int
    epochs: int | None
    steps: int | None
    batch_size: int
    runtime: Mapping[str, Any]  # precision, layout and threads


@dataclass(frozen=True)
class JobConfig:
    """The composed configuration of one job, resolved. Each field is the key of its name."""

    stage: str
    model: Node
    optimizer: Node
    schedule: Node
    dataset: Node
    freeze: Node
    engine: Node
    runtime: Node
    sweep: Node
    search: Node
    evals: Mapping[str, Node]
    monitor: str | None
    pretrain: PretrainConfig
    seed: int
    epochs: int | None
    steps: int | None
    generations: int
    batch_size: int
    init_from: str | None
    init_share: float
    init_unused: float
    init_head: bool | str
    init_key: str | None
    init_prefix: str | None
    init_map: Mapping[str, str]
    test: bool | str
    dry_run: bool
    resume: str | None
    trust: Sequence[str]
    outputs: str
    name: str
    inputs: str | Sequence[str] | None
    format: str | None
    predict: Mapping[str, Any]  # views

    @staticmethod
    def read(plain: Mapping[str, Any]) -> JobConfig:
        """Of what Hydra composed, its keys being known."""
        values = {f.name: plain[f.name] for f in fields(JobConfig) if f.name != "pretrain"}
        own = {f.name: plain["pretrain"][f.name] for f in fields(PretrainConfig)}
        return JobConfig(**values, pretrain=PretrainConfig(**own))

    def plain(self) -> dict[str, Any]:
        """As it was composed."""
        return {**vars(self), "pretrain": dict(vars(self.pretrain))}

    def component(self, group: str) -> Node:
        """The node of a config group."""
        node: Node = getattr(self, group)
        return node

    def pretraining(self) -> JobConfig:
        """Of the run that init_from=auto starts from: everything trains, from random weights."""
        freeze = {TARGET: "hydratune.freeze.NoFreeze", "norm": "frozen"}
        own = {**vars(self.pretrain), "runtime": {**self.runtime, **self.pretrain.runtime}}
        return replace(
            self,
            **own,
            freeze=freeze,
            stage="pretrain",
            init_from=None,
            resume="auto",
            dry_run=False,
            evals={},
            monitor=None,
        )

    # ---- what the rooms below ask of a node

    @property
    def norm(self) -> str:
        """BatchNorm of frozen groups: freeze.norm."""
        return self.freeze.get("norm") or "frozen"

    @property
    def cache(self) -> str:
        """Outputs of the frozen trunk: freeze.cache."""
        return self.freeze.get("cache") or "auto"

    @property
    def strategy_target(self) -> str:
        return str(self.freeze.get(TARGET))

    @property
    def dataset_target(self) -> str:
        return str(self.dataset.get(TARGET))

    @property
    def selfplay(self) -> bool:
        return self.stage == SELFPLAY

    @property
    def total_steps(self) -> int | None:
        """steps, which stage=selfplay counts in each generation."""
        return self.steps * self.generations if self.selfplay and self.steps is not None else self.steps

    @property
    def learning_rate(self) -> float:
        rate: float = self.optimizer["lr"]
        return rate

    @property
    def threads(self) -> int | None:
        """Of the CPU, where they are typed: runtime.threads."""
        return self.runtime.get("threads")

    @property
    def precision(self) -> str:
        return str(self.runtime["precision"])

    @property
    def asks_numerics(self) -> bool:
        """Whether precision or layout are to be tried out."""
        return "auto" in (self.runtime["precision"], self.runtime["layout"])

    @property
    def published_weights(self) -> str | None:
        """Where the model itself brings weights from: a file, a directory or a name; None where it brings none."""
        weights = self.model.get("weights")
        if not weights:
            return None
        return str(self.model.get("name") if weights is True else weights)

    @property
    def views(self) -> int:
        """Of each input, whose predictions are averaged: predict.views."""
        count: int = self.predict["views"]
        return count

    # ---- what jobs have in common

    def loop_key(self) -> str:
        """Equal for jobs that may train in one loop: data, batches, model and where that starts, numbers, cadence."""
        names = ["stage", *(g.name for g in GROUPS if g.together), "evals", "batch_size", "seed", "outputs"]
        names += ["init_from", *INIT_LIMITS, *INIT]
        same = {name: getattr(self, name) for name in names}
        same |= {key: self.engine.get(key) for key in ("eval_every", "save_every", "log_every")}
        if self.init_from == "auto":
            same["pretrain"] = vars(self.pretrain)
        if self.selfplay:
            same |= {"search": self.search, "generations": self.generations, "steps": self.steps}
        return json.dumps(same, sort_keys=True, default=str)

    def numerics_key(self) -> str:
        """Equal for jobs for which the same precision and layout are fastest."""
        return json.dumps([self.model, self.dataset, self.batch_size, self.runtime], default=str)

    def pretraining_key(self) -> str | None:
        """Equal for jobs that start from the same pretraining; None where there is none."""
        return json.dumps([vars(self.pretrain), self.runtime], default=str) if self.init_from == "auto" else None

    def data_key(self) -> str:
        """Equal for jobs that read the same files."""
        return json.dumps([self.dataset, self.evals], default=str)


@dataclass(frozen=True, eq=False)
class Job:
    """One run to be made."""

    config: JobConfig
    directory: Path
    choices: Mapping[str, str]  # config group -> option, for names and HParams
    overrides: Sequence[str]  # as typed, unresolved
    text: str  # the composed configuration, unresolved
    trust: Sequence[str]
    command: str = ""  # what was typed, to be typed again
    sweep: bool = False
    config_hash: str = ""  # fingerprint of what was asked for, by which a sweep knows its jobs again
    former_hash: str = ""  # the same as the version before had it
    secrets: Sequence[str] = ()  # values out of the environment, which are written nowhere
    halt: float | None = None  # share of its steps at which a sweep halts it, to see who goes on
    numerics: Mapping[str, Any] = field(default_factory=dict)  # threads and precision, as far as a sweep settled them

    @property
    def reads_test(self) -> bool:
        """Whether the test split is read at its end."""
        wanted = self.config.test
        return wanted is True or (wanted == "auto" and not self.sweep)

    def with_config(self, **changes: Any) -> Job:
        """The same job with other values of its configuration."""
        return replace(self, config=replace(self.config, **changes))

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "config": self.config.plain(), "directory": str(self.directory)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Job:
        secrets.learn(values["secrets"])
        config = JobConfig.read(values["config"])
        return Job(**{**values, "config": config, "directory": Path(values["directory"])})


assert set(COMPONENTS) <= {f.name for f in fields(JobConfig)}
