"""The pretraining of init_from=auto: what it is, and that it is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydratune.config.fingerprint import content, differences, fingerprint
from hydratune.config.groups import chosen_for_pretraining
from hydratune.config.job import Job, JobConfig, Node
from hydratune.config.overrides import as_overrides
from hydratune.distributed.runtime import Numerics
from hydratune.experiment.components import dataset_of, runtime_of
from hydratune.record.claim import locked
from hydratune.record.run import write_json
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen

WAITING = "init_from=auto: another job is running this pretraining; waiting for it"


def pretraining_of(job: Job, digests: dict[str, str]) -> tuple[JobConfig, dict[str, Any]]:
    """(the configuration of the job's pretraining, what determines its weights)"""
    config = job.config.pretraining()
    files = files_digest(config.dataset, "pretrain.dataset", job, digests)
    return config, content(config, config.freeze, None, files, config.precision)


def files_digest(node: Node, where: str, job: Job, digests: dict[str, str]) -> str:
    """Of a data set's files, looked at once."""
    key = json.dumps([node, list(job.trust)], sort_keys=True, default=str)
    if key not in digests:
        digests[key] = dataset_of(node, where, job.trust).files()
    return digests[key]


def pretrained_run(job: Job, screen: Screen, pretrain: Callable[[Job], Path]) -> Path:
    """The finished run that the `pretrain` node describes: found by its fingerprint, or made now, by one process."""
    config, wanted_content = pretraining_of(job, {})
    wanted = fingerprint(wanted_content)
    outputs = Path(config.outputs)
    home = outputs / "pretrain"
    runtime = runtime_of(config, job.trust)
    # Of several processes the first one looks, and all of them pretrain.
    with locked(home / f".pretrain-{wanted[:12]}.lock", screen, WAITING) if runtime.rank == 0 else nullcontext():
        finished = runtime.first_says(
            _finished_run(outputs, wanted, wanted_content, screen) if not runtime.rank else ""
        )
        if finished:
            return Path(finished)
        choices = chosen_for_pretraining(job.choices)
        name = f"auto-{choices['model']}-{choices['dataset']}-{wanted[:8]}"
        screen.line("init_from=auto: no finished run of this pretraining under outputs; it runs now")
        directory = home / name
        overrides = as_overrides(config, choices)
        if runtime.rank == 0:
            _record_overrides(directory, overrides)
        pretraining = Job(config, directory, choices, overrides, job.text, job.trust, job.command, job.sweep)
        try:
            return pretrain(pretraining)
        except ValueError as error:
            if type(error) is not ValueError:  # a fault of ours
                raise
            raise ValueError(
                f"the pretraining of init_from=auto, dataset@pretrain.dataset={choices['dataset']}: {error}; "
                "init_from=RUN takes the weights of a run that is there, init_from=null none"
            ) from error


def _finished_run(outputs: Path, wanted: str, content: Mapping[str, Any], screen: Screen) -> str:
    """The directory of the finished run with this fingerprint; others of its model are named. Empty: there is none."""
    others = []
    for path in sorted([*outputs.glob("*/*/run.json"), *outputs.glob("sweeps/*/*/run.json")]):
        record = RunRecord.read(path.parent)
        if record.stage != "pretrain" or record.status != "complete" or record.provenance is None:
            continue
        if record.fingerprint == wanted or _serves(record, content):
            screen.line(f"init_from=auto: {path.parent} is this pretraining, finished {record.ended}")
            return str(path.parent)
        if record.provenance.get("model") == content["model"]:
            others.append((record.ended or "", path.parent))
    for _, other in sorted(others)[-3:]:
        screen.line(f"init_from=auto: {other} is another pretraining of this model; init_from={other} takes it")
    return ""


def _serves(record: RunRecord, wanted: Mapping[str, Any]) -> bool:
    """Whether what is typed now of precision and layout is what that run chose then, and all else is the same."""
    if record.provenance is None or "precision" not in (record.runtime or {}):
        return False
    chosen = Numerics.read(record.runtime or {}).settings()
    pinned = {k: v for k, v in chosen.items() if wanted.get(k, "auto") != "auto"}
    return not differences({**record.provenance, **pinned}, json.loads(json.dumps(wanted)))


def _record_overrides(directory: Path, overrides: list[str]) -> None:
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    write_json(directory / ".hydra" / "overrides.yaml", overrides)  # JSON is YAML
