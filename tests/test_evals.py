"""Further named evaluation sets: read at the same steps as validation, reported beside it, and deciding nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import hydratune, make_job
from tests.faults.harness import scalars

SMALL = ["stage=pretrain", "dataset.train=96", "dataset.val=48", "dataset.test=48", "batch_size=16", "epochs=2",
         "runtime.precision=fp32", "runtime.layout=contiguous"]  # fmt: skip
SHIFTED = ["+dataset@evals.shifted=shapes10", "evals.shifted.shift=input", "evals.shifted.val=40"]


def record(home: Path, name: str) -> dict[str, Any]:
    (path,) = home.glob(f"outputs/*/{name}/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_they_are_reported_beside_validation_and_change_nothing(tmp_path: Path) -> None:
    for name, more in (("plain", []), ("more", [*SHIFTED, "+dataset@evals.same=shapes10", "evals.same.val=48"])):
        done = hydratune(*SMALL, *more, f"name={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    plain, more_ = record(tmp_path, "plain"), record(tmp_path, "more")
    assert plain["checkpoint"]["sha256"] == more_["checkpoint"]["sha256"] and plain["history"] == more_["history"]
    metrics = more_["metrics"]
    assert metrics["same_accuracy"] == metrics["val_accuracy"]  # the same samples
    assert metrics["same_loss"] == pytest.approx(metrics["val_loss"])
    assert "shifted_accuracy" in metrics and metrics["shifted_loss"] != metrics["val_loss"]
    seen = scalars(tmp_path / "outputs/pretrain/more")
    assert [step for step, _ in seen["shifted/accuracy"]] == [step for step, _ in seen["val/accuracy"]] == [6, 12]
    assert "shifted: 40 images" in done.stdout and "shifted accuracy" in done.stdout


def test_a_run_with_them_is_resumed(tmp_path: Path) -> None:
    done = hydratune(*SMALL, *SHIFTED, "name=run", cwd=tmp_path)
    assert done.returncode == 0
    again = hydratune("resume=outputs/pretrain/run", cwd=tmp_path)
    assert again.returncode == 0 and "is complete" in again.stdout, again.stderr


def test_jobs_of_a_sweep_share_them(tmp_path: Path) -> None:
    done = hydratune(
        "-m", *SMALL, *SHIFTED, "freeze=none,head_only", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(p.read_text()) for p in (tmp_path / "sweep").glob("*/run.json")]
    assert len(records) == 4 and all("shifted_accuracy" in r["metrics"] for r in records)
    assert len({r["metrics"]["shifted_loss"] for r in records}) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+dataset@evals.val=shapes10"], "evals.val: validation itself is called so"),
        (["+evals.shifted.classes=3"], "must be one of the group's options, or a mapping with _target_"),
        ([*SHIFTED, "+evals.shifted.colour=3"], "evals.shifted.colour=3: no such key"),
        (
            ["+dataset@evals.other=shapes100"],
            "evals.other: has the class plain disc, which the network does not have: disc, square",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    done = hydratune(*SMALL, *overrides, "name=run", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stdout + done.stderr


def test_a_folder_without_parts_is_evaluated_whole(tmp_path: Path) -> None:
    """It is not divided: nothing of it trains."""
    chance = random.Random(0)
    for root, count in (("photos", 20), ("later", 7)):
        for name in ("dark", "light"):
            (tmp_path / root / name).mkdir(parents=True)
            for i in range(count):
                level = chance.randrange(100) + (155 if name == "light" else 0)
                Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(tmp_path / root / name / f"{i}.png")
    folder = ["dataset=image_folder", "dataset.root=photos", "dataset.size=8", "model=mlp", "batch_size=8", "epochs=2",
              "stage=pretrain", "runtime.precision=fp32", "runtime.layout=contiguous"]  # fmt: skip
    later = ["+dataset@evals.later=image_folder", "evals.later.root=later", "evals.later.size=8"]
    done = hydratune(*folder, *later, "name=run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "later: 14 images; dark 7, light 7" in done.stdout
    assert "later_accuracy" in record(tmp_path, "run")["metrics"]


def test_names_are_free_and_kept_by_the_jobs_fingerprint(tmp_path: Path) -> None:
    from hydratune.experiment.config_hash import config_hash

    plain, more = (make_job([*SMALL, *o], tmp_path) for o in ([], SHIFTED))
    assert config_hash(plain, {}) != config_hash(more, {})
