"""Other people's directories of YAML: what of them reaches Hydra, tried at random and by the command itself."""

from __future__ import annotations

import csv
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, hydratune
from tests.faults.payloads import ENVIRONMENT, GLOBAL, commanded

GROUPS = {"experiment": ["mine", "other"], "optimizer": ["own", "evil"], "zoo": ["a", "b"], "zoo/deep": ["c"]}
# The first of each kind do no harm.
LINES = [
    "seed: 5",
    "batch_size: 16",
    "x: 1",
    "optimizer: {lr: 0.5}",
    "name: mine",
    "name: ../../../canary",
    "y: ../../../canary\nname: ${y}",
    "stage: ${x}",
    'outputs: "o\\n"',
    "hydra: {sweep: {subdir: ../../../canary}}",
    "hydra: {run: {dir: canary}}",
    "hydra: {job: {env_set: {CANARY: x}}}",
    "hydra: {callbacks: {x: {_target_: os.mkdir, path: canary}}}",
    "hydra: {sweeper: {max_batch_size: 3}}",
    "hydra: {output_subdir: canary}",
    "hydra: {verbose: true}",
    "hydra: {job_logging: {handlers: {file: {filename: canary}}}}",
    "hydra: {hydra_logging: {root: {level: DEBUG}}}",
    "hydra: {overrides: {task: [optimizer=evil]}}",
    "hydra: {overrides: {hydra: ['+hydra.job.env_set.CANARY=x']}}",
    "hydra: {runtime: {choices: {nobody: ../canary}}}",
    "hydra: {job: {chdir: true}}",
    "hydra: {job: {num: 3}}",
    "hydra: {mode: MULTIRUN}",
    "hydra: {launcher: {n_jobs: 2}}",
    "hydra: {sweeper: '${x}'}",
    "hydra: {env: '${x}'}",
    "hydra: {job_logging: {root: {handlers: []}, root.handlers: [file]}}",
]
HEADERS = [
    *["# @package _global_"] * 6,
    "#",
    "# @package hydra",
    "# @package hydra.job.env_set",
    "# @package hydra.job",
]
DEFAULTS = [
    "/zoo@one: a",
    "/zoo@two: b",
    "/zoo/deep: c",
    "override /optimizer: evil",
    "override /optimizer: own",
    "override /model: mlp",
    "/zoo@hydra.job.env_set: a",
    "/optimizer@hydra.callbacks.x: own",
    "override /hydra/env: evil",
    "optional /zoo@x: ${model}",
    "optional /zoo@x: ${experiment}",
    "override /hydra/sweeper: basic",
    "override /hydra/job_logging: none",
    "optional /zoo@x: ${now:%S}",
]
PARAMS = [
    "seed: 1,2",
    "batch_size: 4,8",
    "optimizer: own",
    "optimizer: evil",
    "optimizer: sgd,evil",
    "optimizer: choice(own,sgd)",
    "+zoo: a",
    "+zoo: a,b",
    "optimizer: glob(e*)",
    "freeze: none,head_only",
    "seed: range(1,3)",
    "+zoo@three: b",
    "+zoo@hydra.job.env_set: b",
    "hydra/launcher: basic",
    "hydra.job.chdir: true",
    "+hydra.job.env_set.CANARY: x",
    "_target_: os.mkdir",
    "name: canary",
    "batch_size: ${x}",
]


def directory(dice: random.Random, home: Path) -> None:
    """Somebody's configurations: of small parts, some harmless and some not."""
    harm = dice.choice([0.0, 0.1, 0.5])

    def some(words: list[str], harmless: int, most: int) -> list[str]:
        """At most so many that do not begin alike."""
        drawn = [dice.choice(words if dice.random() < harm else words[:harmless]) for _ in range(dice.randint(0, most))]
        return list({re.split("[:@]", word)[0]: word for word in drawn}.values())

    for group, options in {**GROUPS, "hydra/env": ["evil"]}.items():
        for option in options:
            lines: list[str] = some(LINES, 5, 2)
            if group == "experiment" and (defaults := some(DEFAULTS, 6, 1)):
                lines = ["defaults:", *(f"  - {d}" for d in defaults), *lines]
            params = some(PARAMS, 12, 2) if dice.random() < 0.5 else []
            if params and not any(said.startswith("hydra") for said in lines):
                lines += ["hydra:", "  sweeper:", "    params:", *(f"      {p}" for p in params)]
            path = home / "conf" / group / f"{option}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            header = dice.choice(HEADERS if dice.random() < harm else HEADERS[:6])
            path.write_text("\n".join([header, *(lines or ["{}"])]) + "\n")


def line(dice: random.Random) -> list[str]:
    """What somebody types who means no harm."""
    places = ["--config-dir=conf", "-cd=conf", "--config-dir={home}/conf", "hydra.searchpath=[file://{home}/conf]"]
    typed = [dice.choice(places), dice.choice(["experiment=mine", "experiment=other"])]
    if dice.random() < 0.75:
        swept = ["seed=1,2", "+zoo=a,b", "optimizer=own,evil", "optimizer=sgd,own", "batch_size=8,16"]
        typed += ["-m", "hydra/launcher=basic", "hydra.sweep.dir=outputs/s", *dice.sample(swept, dice.randint(0, 2))]
        if dice.random() < 0.3:
            typed[1] = "experiment=mine,other"
    return typed + dice.sample(["+zoo/deep=c", "hydra.verbose=false", "+hydra.job.env_set.TYPED=1"], dice.randint(0, 1))


def leaves(node: Any, where: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if not isinstance(node, Mapping) or not node:
        return {where: repr(node)}
    return {k: v for key, child in node.items() for k, v in leaves(child, (*where, str(key))).items()}


@cache
def ours(*typed: str) -> dict[tuple[str, ...], str]:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from hydratune.config.compose import config_directory

    loader = ConfigLoaderImpl(create_config_search_path(str(config_directory())))
    return leaves(OmegaConf.to_container(loader.load_configuration("config", list(typed), RunMode.RUN).hydra))


FREE = re.compile(
    r"runtime|overrides|mode|searchpath|sweeper params|sweeper max_batch_size|launcher n_jobs|"
    r"job (id|num|override_dirname|config_name|name)"
)


def differs(config: Any, typed: list[str]) -> list[str]:
    """What under `hydra`, of a configuration that Hydra acts on, is neither ours nor typed nor a plain setting."""
    from omegaconf import OmegaConf

    own = [o for o in typed if o.lstrip("+").startswith("hydra") and "searchpath" not in o]
    one, two = leaves(OmegaConf.to_container(config.hydra)), ours(*own)
    wrong = [" ".join(k) for k in one.keys() | two.keys() if one.get(k) != two.get(k) and not FREE.match(" ".join(k))]
    wrong += [o for o in config.hydra.overrides.hydra if o not in typed and not o.startswith("hydra.mode=")]
    wrong += [o for o in config.hydra.overrides.task if o.lstrip("+~").startswith("hydra")]
    wrong += [k for k in config.hydra.sweeper.get("params") or {} if k.startswith("_")]
    return wrong + [f"{g}={o}" for g, o in config.hydra.runtime.choices.items() if ".." in str(o)]


@contextmanager
def acted(told: Callable[[Any], None]) -> Iterator[None]:
    """Be told of each configuration that Hydra acts on: a run, a sweep, the jobs of it."""
    from hydra._internal import hydra as internal
    from hydra._internal.core_plugins import basic_launcher

    def telling(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            told(named.get("config") or arguments[0])
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((internal, "Callbacks"), (internal, "run_job"), (basic_launcher, "run_job")):
            patch.setattr(module, name, telling(getattr(module, name)))
        yield


def tried(seed: int, place: Path) -> tuple[bool, list[str]]:
    """(whether it was accepted, what of it reached Hydra that should not)"""
    dice, home = random.Random(seed), place / str(seed) / "deep" / "home"
    home.mkdir(parents=True)
    directory(dice, home)
    typed = [o.replace("{home}", str(home)) for o in line(dice)]
    wrong: list[str] = []

    def job(config: Any) -> float:
        wrong.extend(["CANARY in the environment"] if "CANARY" in os.environ else [])
        return 0.0

    accepted = True
    try:
        with acted(lambda config: wrong.extend(differs(config, typed))):
            commanded(typed, home, job)
    except Exception:
        accepted = False
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()]
    wrong += [p for p in left if not re.match(r"conf/|outputs/(s|finetune/[\w.-]+|pretrain/[\w.-]+)/", p)]
    return accepted, wrong + [str(p) for p in (place / str(seed)).rglob("canary")]


@pytest.mark.scenario(35)
@pytest.mark.parametrize(("first", "many"), [(0, 16), pytest.param(16, 100, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_nothing_of_a_strange_directory_reaches_hydra(tmp_path: Path, first: int, many: int) -> None:
    accepted = 0
    for seed in range(first, first + many):
        passed, wrong = tried(seed, tmp_path)
        assert not wrong, (seed, wrong)
        accepted += passed
    assert many / 8 < accepted < many * 7 / 8  # neither nothing nor everything


@pytest.mark.scenario(35)
@pytest.mark.slow
def test_without_the_guard_they_would_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.payloads.refuse_foreign_hydra", lambda *arguments: None)
    assert sum(bool(tried(seed, tmp_path)[1]) for seed in range(10)) >= 2


SWEEP = f"""{GLOBAL}epochs: 1
hydra:
  sweeper:
    params:
      optimizer.lr: 0.01,0.1
      freeze: none,head_only
      seed: 4
"""


def written(home: Path, **files: str) -> Path:
    """zoo__a is zoo/a.yaml"""
    for name, text in files.items():
        path = home / "conf" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return home


@pytest.mark.scenario(35)
def test_a_sweep_that_somebodys_file_asks_for_is_made(tmp_path: Path) -> None:
    own = "_target_: hydratune.optim.SGD\nlr: 0.3\n"
    written(tmp_path, experiment__mine=SWEEP, optimizer__own=own, experiment__plain=f"{GLOBAL}seed: 5\n")
    line = ["-m", "--config-dir=conf", *TINY, "model=mlp", "init_from=null", "runtime.threads=1", "hydra.sweep.dir=s"]
    done = hydratune(*line, "experiment=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "s" / "leaderboard.csv").read_text().splitlines()))
    assert {(r["optimizer.lr"], r["freeze"]) for r in rows} == {
        (a, b) for a in ("0.01", "0.1") for b in ("none", "head_only")
    }
    assert {r["status"] for r in rows} == {"complete"}
    line[-1] = "hydra.sweep.dir=t"
    done = hydratune(*line, "experiment=plain", "optimizer=own,sgd", "epochs=1", cwd=tmp_path)
    assert done.returncode == 0 and len(list((tmp_path / "t").glob("*/run.json"))) == 2, done.stderr


@pytest.mark.scenario(35)
@pytest.mark.parametrize("launcher", ["local", "basic"])
@pytest.mark.parametrize("evil", [ENVIRONMENT, f"{GLOBAL}hydra:\n  sweep:\n    subdir: ../../../canary\n"])
def test_an_option_that_a_sweep_of_somebodys_file_takes_is_looked_at(tmp_path: Path, launcher: str, evil: str) -> None:
    mine = f"{GLOBAL}hydra:\n  sweeper:\n    params:\n      optimizer: evil\n"
    home = written(tmp_path / "a" / "b", experiment__mine=mine, optimizer__evil=evil)
    done = hydratune("-m", "--config-dir=conf", "experiment=mine", f"hydra/launcher={launcher}", cwd=home)
    assert done.returncode == 2 and "said by a configuration file" in done.stderr, done.stderr
    assert (
        "Traceback" not in done.stderr and not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob("canary"))
    )


@pytest.mark.scenario(35)
def test_a_run_goes_on_with_somebodys_directory_typed_again(tmp_path: Path) -> None:
    written(tmp_path, experiment__mine=f"{GLOBAL}seed: 5\n", experiment__evil=ENVIRONMENT)
    line = ["--config-dir", "conf", "experiment=mine", "stage=pretrain", *TINY, "model=mlp"]
    done = hydratune(*line, "epochs=1", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = hydratune("resume=run", "--config-dir", "conf", cwd=tmp_path)
    assert again.returncode == 0 and "complete; nothing to do" in again.stdout, again.stderr
    evil = hydratune("resume=run", "--config-dir", "conf", "experiment=evil", cwd=tmp_path)
    assert evil.returncode == 2 and "hydra.job.env_set" in evil.stderr, evil.stderr
