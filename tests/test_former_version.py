"""Runs of the version before are read: they name classes by their modules, and some entries otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydratune.config.aliases import _THEN, former, upgraded, upgraded_record
from hydratune.config.public import PUBLIC
from hydratune.record.run_record import RunRecord
from tests.conftest import hydratune

SMALL = ["dataset.train=96", "dataset.val=48", "dataset.test=48", "batch_size=16", "epochs=1",
         "runtime.precision=fp32", "runtime.layout=contiguous"]  # fmt: skip
PRETRAIN = ["pretrain.dataset.train=96", "pretrain.dataset.val=48", "pretrain.dataset.test=48", "pretrain.epochs=1",
            "pretrain.batch_size=16"]  # fmt: skip


def as_before(directory: Path, change: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """run.json as the version before had written it."""
    record = json.loads((directory / "run.json").read_text())
    for today, then in (("provenance", "made_of"), ("config_hash", "asked"), ("trained_with", "beside")):
        if today in record:
            record[then] = record.pop(today)
    if "made_of" in record:
        record["made_of"] = former(record["made_of"])
    change(record)
    (directory / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("then", "today"),
    [
        ("hydratune.data.shapes.Shapes", "hydratune.data.Shapes"),
        ("hydratune.freeze.strategies.Nothing", "hydratune.freeze.NoFreeze"),
        ("hydratune.optim.Steps", "hydratune.optim.MultiStep"),
        ("hydratune.runtime.Runtime", "hydratune.distributed.Runtime"),
        ("hydratune.models.huggingface.huggingface", "hydratune.models.huggingface"),
        ("hydratune.optim.SGD", "hydratune.optim.SGD"),
        ("mine.Data", "mine.Data"),
    ],
)
def test_names_of_then_and_of_today(then: str, today: str) -> None:
    assert upgraded({"a": [{"_target_": then}]}) == {"a": [{"_target_": today}]}
    assert former(upgraded({"_target_": then, "b": 1})) == {"_target_": then, "b": 1}
    assert today not in _THEN or today in PUBLIC


def test_keys_that_came_later_are_what_they_were_before() -> None:
    then = {"_target_": "hydratune.data.folder.ImageFolder", "size": 64}
    today = {"_target_": "hydratune.data.ImageFolder", "size": 64, "fit": "crop"}
    assert upgraded(then) == today and former(today) == then
    assert former({**today, "fit": "letterbox"}) == {**then, "fit": "letterbox"}


def test_every_name_of_then_is_one_of_today() -> None:
    assert len(_THEN) > 40 and all(today in PUBLIC for today in _THEN)


def test_keys_that_came_later_are_what_they_were() -> None:
    then = {"_target_": "hydratune.data.labelled_text.TextTable", "path": "a.csv"}
    assert upgraded(then)["separator"] == "auto" and former(upgraded(then)) == then


def test_a_record_of_then() -> None:
    seen = upgraded_record({"made_of": {"model": {"_target_": "hydratune.models.simple_cnn.mlp"}}, "asked": "x"})
    assert seen == {"provenance": {"model": {"_target_": "hydratune.models.mlp"}}, "config_hash": "x"}
    assert RunRecord.parse({"asked": "x", "beside": ["a"], "unknown": 3}).trained_with == ["a"]


def test_a_pretraining_of_then_is_found_and_a_run_of_then_goes_on(tmp_path: Path) -> None:
    done = hydratune("stage=finetune", *SMALL, *PRETRAIN, "name=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (pretraining,) = (tmp_path / "outputs" / "pretrain").glob("auto-*")
    as_before(pretraining, lambda record: record.update(fingerprint="of then"))
    as_before(tmp_path / "outputs/finetune/first")
    again = hydratune("resume=outputs/finetune/first", cwd=tmp_path)
    assert again.returncode == 0 and "is complete; nothing to do" in again.stdout, again.stderr
    second = hydratune("stage=finetune", *SMALL, *PRETRAIN, "freeze=none", "name=second", cwd=tmp_path)
    assert "is this pretraining, finished" in second.stdout, second.stdout + second.stderr
    assert len(list((tmp_path / "outputs" / "pretrain").glob("auto-*"))) == 1


def test_an_unfinished_run_of_then_goes_on_and_another_one_is_refused_with_what_changed(tmp_path: Path) -> None:
    command = ["stage=pretrain", *SMALL, "epochs=2", "name=run", "engine.save_every=2"]
    done = hydratune(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/pretrain/run"
    as_before(run, lambda record: record.update(status="interrupted"))
    more = hydratune("resume=outputs/pretrain/run", "optimizer.lr=0.5", cwd=tmp_path)
    assert more.returncode == 2 and "Changed: optimizer.lr: 0.01 -> 0.5" in more.stderr, more.stderr
    again = hydratune("resume=outputs/pretrain/run", cwd=tmp_path)
    assert again.returncode == 0 and "resuming" in again.stdout, again.stderr
    assert json.loads((run / "run.json").read_text())["status"] == "complete"


def test_a_sweep_of_then_goes_on(tmp_path: Path) -> None:
    command = ["-m", "stage=finetune", "init_from=null", *SMALL, "hydra.sweep.dir=sweep"]
    assert hydratune(*command, "freeze=none,head_only", cwd=tmp_path).returncode == 0
    from tests.conftest import make_job  # its hash of then, as that version had it

    for directory in (tmp_path / "sweep").glob("*/run.json"):
        strategy = directory.parent.name.partition("=")[2]
        job = make_job(["stage=finetune", "init_from=null", *SMALL, f"freeze={strategy}"], tmp_path / "other", True)
        from hydratune.experiment.config_hash import config_hash

        as_before(directory.parent, lambda record, job=job: record.update(asked=config_hash(job, {}, former)))
    more = hydratune(*command, "freeze=none,head_only,last_groups", cwd=tmp_path)
    assert more.returncode == 0 and "2 of 3 jobs are as far already" in more.stdout, more.stdout + more.stderr
