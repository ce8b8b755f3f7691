"""All that can be refused before data or torch is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydratune.config import instantiate
from hydratune.config.compose import config_directory
from hydratune.config.groups import COMPONENTS, LATEST, USING
from hydratune.config.instantiate import TARGET
from hydratune.config.job import OF_EVERY_STRATEGY, Job, JobConfig, Node, PretrainConfig
from hydratune.config.keys import SPLITS
from hydratune.config.origin import found
from hydratune.config.overrides import refuse_name

MOST_VIEWS = 64


def validate(job: Job) -> None:
    """All that can be refused before data or torch is loaded. Raises ValueError."""
    config = job.config
    if config.stage in USING:
        validate_use(job)
        return
    _refuse_others_keys(config)
    _validate_selfplay(config, job)
    _check_components("", config, job)
    instantiate.check(config.sweep, "sweep", job.trust)
    for name, node in config.evals.items():
        instantiate.check(node, f"evals.{name}", job.trust)
    _validate_numbers("", config)
    if config.init_from == "auto":
        _check_components("pretrain.", config.pretrain, job)
        _validate_numbers("pretrain.", config.pretrain)
    _validate_init(config)
    origin = config.init_from
    if origin is not None and not isinstance(origin, str):
        raise ValueError(f"init_from={origin}: must be null, auto or a path")
    # a resumed run has all that it needs
    path = origin.removeprefix("best:") if origin and origin != "auto" and config.resume is None else "."
    if not Path(path).expanduser().exists() and not found(path).exists():
        raise ValueError(f"init_from={origin}: no such run directory, checkpoint or file of tensors")
    instantiate.build(config.engine, "engine", job.trust)  # light: its values are looked at before torch is loaded
    for where, node in (("", config.engine), ("pretrain.", config.pretrain.engine)):
        if node.get("recompute") and config.runtime["compile"]:
            raise ValueError(
                f"{where}engine.recompute=true: with runtime.compile=true the compiler decides what is kept"
            )
    for key, options in OF_EVERY_STRATEGY.items():
        if (value := config.freeze.get(key)) not in (None, *options):
            raise ValueError(f"freeze.{key}={value}: {instantiate.nearest(str(value), options)}")
    if not isinstance(config.dry_run, bool):
        raise ValueError(f"dry_run={config.dry_run}: must be true or false")
    refuse_name(str(config.name))
    if config.test not in (True, False, "auto"):
        raise ValueError(f"test={config.test}: must be auto, true or false")
    _validate_monitor(config)
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume={config.resume}: must be auto, or a run directory typed on the command line")
    if not isinstance(config.outputs, str) or not config.outputs:
        raise ValueError(f"outputs={config.outputs}: must be a directory")


# ---- the stages that use what was trained

USES = {"inputs": ("predict",), "format": ("predict", "export")}
FORMATS = {"predict": ("csv", "jsonl", "parquet", "coco"), "export": ("onnx", "torch_export", "safetensors")}
OWN_SPLIT = "dataset:"  # inputs=dataset:test, samples of the data set itself


def validate_use(job: Job) -> None:
    """The same for evaluate, predict and export."""
    config, stage = job.config, job.config.stage
    for name in ("model", "dataset", "runtime", "search"):
        instantiate.check(getattr(config, name), name, job.trust)
    for name, node in config.evals.items():
        instantiate.check(node, f"evals.{name}", job.trust)
    _validate_numbers("", config)
    _validate_init(config)
    if not isinstance(config.init_from, str) or config.init_from == "auto":
        raise ValueError(f"init_from={config.init_from}: stage={stage} wants a run, a checkpoint or a file of tensors")
    if not found(config.init_from).exists():
        raise ValueError(f"init_from={config.init_from}: no such run directory, checkpoint or file of tensors")
    _refuse_others_keys(config)
    if config.format not in (None, *FORMATS.get(stage, ())):
        raise ValueError(f"format={config.format}: {instantiate.nearest(str(config.format), FORMATS[stage])}")
    if not isinstance(config.views, int) or isinstance(config.views, bool) or not 1 <= config.views <= MOST_VIEWS:
        raise ValueError(f"predict.views={config.views}: a whole number from 1 to {MOST_VIEWS}")
    if stage == "predict":
        _validate_inputs(config.inputs)
    if stage == "export" and config.format is None:
        raise ValueError(f"format: stage=export wants one of {', '.join(FORMATS['export'])}")


def _refuse_others_keys(config: JobConfig) -> None:
    """Raises ValueError for a key that another stage asks for."""
    for key, stages in USES.items():
        if getattr(config, key) is not None and config.stage not in stages:
            raise ValueError(f"{key}={getattr(config, key)}: belongs to stage={' or '.join(stages)}")


def _validate_inputs(inputs: object) -> None:
    given = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(given, Sequence) or not given or not all(isinstance(path, str) and path for path in given):
        raise ValueError(
            f"inputs={'null' if inputs is None else inputs}: stage=predict wants files, folders or a list of them, or "
            f"{OWN_SPLIT}test for the test split of the data set itself"
        )
    for path in given:
        split = path.removeprefix(OWN_SPLIT)
        if split != path and split not in SPLITS:
            raise ValueError(f"inputs={path}: {instantiate.nearest(split, SPLITS)}")
        if split == path and not Path(path).expanduser().exists():
            raise ValueError(f"inputs={path}: no such file or folder")


def _check_components(where: str, config: JobConfig | PretrainConfig, job: Job) -> None:
    for name in COMPONENTS:
        node = getattr(config, name, None)
        if node is None or (where, name) == ("pretrain.", "runtime"):
            continue
        if name == "freeze":
            _check_freeze_keys(node)
            node = strategy_node(node, job.sweep, job.trust)
            _refuse_keys_of_others(node)
        instantiate.check(node, where + name, job.trust)


def _validate_init(config: JobConfig) -> None:
    """The keys that say how weights are taken over."""
    for key in ("init_share", "init_unused"):
        share = getattr(config, key)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"{key}={share}: must be a share between 0 and 1")
    if config.init_head not in (True, False, "auto"):
        raise ValueError(f"init_head={config.init_head}: must be auto, true or false")
    for key in ("init_key", "init_prefix"):
        if getattr(config, key) is not None and not isinstance(getattr(config, key), str):
            raise ValueError(f"{key}={getattr(config, key)}: must be a word or null")
    names = config.init_map
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(f"init_map={names}: must be a mapping of names, such as {{linear: fc}}")


def _validate_selfplay(config: JobConfig, job: Job) -> None:
    instantiate.check(config.search, "search", job.trust)
    if not isinstance(config.generations, int) or isinstance(config.generations, bool) or config.generations < 1:
        raise ValueError(f"generations={config.generations}: must be a whole number, at least 1")
    if not config.selfplay:
        return
    if config.steps is None:
        raise ValueError("steps: stage=selfplay wants the steps of each generation")
    if not instantiate.accepts(config.dataset, "directories", job.trust):
        raise ValueError(f"dataset={job.choices.get('dataset')}: stage=selfplay makes its data; dataset=selfplay")
    simulations = instantiate.build(config.search, "search", job.trust).simulations
    if not isinstance(simulations, int) or simulations < 1:
        raise ValueError(f"search.simulations={simulations}: stage=selfplay wants one whole number, at least 1")
    every = config.engine.get("eval_every")
    if every is not None and config.steps % every:
        raise ValueError(f"engine.eval_every={every}: must divide steps={config.steps}, those of a generation")


def _validate_monitor(config: JobConfig) -> None:
    asked = config.monitor
    if asked in (None, LATEST):
        return
    named = re.fullmatch(r"evals\.(\w+)\.(\w+)", str(asked))
    if named is None or named[1] not in config.evals:
        known = [f"evals.{name}.METRIC" for name in config.evals] or ["null, as there is no evaluation set"]
        known.append(LATEST)
        raise ValueError(f"monitor={asked}: {' or '.join(known)}; validation's own is dataset.task.monitor")


def _validate_numbers(where: str, config: JobConfig | PretrainConfig) -> None:
    for key in ("epochs", "steps", "batch_size", "seed"):
        value, least = getattr(config, key), 0 if key == "seed" else 1
        if value is None and key in ("epochs", "steps"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{where}{key}={value}: must be a whole number, at least {least}")
    if config.steps is None and config.epochs is None:
        raise ValueError(f"{where}epochs or {where}steps must be given")


def strategy_node(freeze: Node, sweep: bool, trust: Sequence[str] = ()) -> dict[str, Any]:
    """What the strategy's constructor is given: not the keys of every strategy, which the phases and the loop take.

    A key foreign to the strategy is refused in a single run; a sweep has it for another strategy.
    """
    given = {k: v for k, v in freeze.items() if v is not None and k not in OF_EVERY_STRATEGY}
    if not sweep:
        return given
    return {k: v for k, v in given.items() if k == TARGET or instantiate.accepts(given, k, trust)}


def _check_freeze_keys(freeze: Node) -> None:
    """Raises ValueError for a key that no strategy of ours has, typed or not, null or not."""
    import yaml

    known = [TARGET, *yaml.safe_load((config_directory() / "freeze" / "_base.yaml").read_text())]
    if str(freeze[TARGET]).startswith("hydratune."):
        for key, value in freeze.items():
            if key not in known:
                raise ValueError(f"freeze.{key}={value}: no such key; {instantiate.nearest(key, known[1:])}")


def _refuse_keys_of_others(strategy: Node) -> None:
    """Raises ValueError for a key that another strategy has, naming those that do."""
    if not str(strategy.get(TARGET)).startswith("hydratune."):
        return
    for key in strategy.keys() - {TARGET}:
        if instantiate.accepts(strategy, key):
            continue
        files = sorted((config_directory() / "freeze").glob("*.yaml"))
        targets = {f.stem: re.search(r"^_target_: (\S+)", f.read_text(), re.M) for f in files}
        owners = [o for o, found in targets.items() if found and instantiate.accepts({TARGET: found[1]}, key)]
        if owners:
            named = " or ".join(f"freeze={owner}" for owner in owners)
            raise ValueError(f"freeze.{key}={strategy[key]}: no such key of this strategy; it belongs to {named}")
