"""Runs on folders of images: other pixels under the same names are other data, and what cannot work is said first."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from hydratune.record import checkpoint
from tests.conftest import hydratune
from tests.test_image_files import pictures, repainted

FOLDER = [
    "dataset=image_folder", "dataset.size=8", "dataset.val_share=0.3", "dataset.test_share=0.3", "model=mlp",
    "dataset.augment.flip=false", "dataset.augment.resized_crop=null", "batch_size=4", "epochs=2",
    "runtime.precision=fp32", "runtime.threads=1",
]  # fmt: skip


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """a and b hold the same names and sizes."""
    pictures(tmp_path / "a", "cat", "dog", count=12)
    pictures(tmp_path / "b", "cat", "dog", count=12, start=120)
    return tmp_path


@pytest.mark.scenario(14)
def test_a_run_does_not_go_on_with_other_pixels(roots: Path) -> None:
    options = [*FOLDER, "stage=pretrain", "dataset.root=a", "hydra.run.dir=run"]
    done = hydratune(*options, cwd=roots)
    assert done.returncode == 0, done.stderr
    assert "train: 12 images; cat 6, dog 6" in done.stdout and "val: divided off train: 4 images" in done.stdout
    path = roots / "run" / "run.json"
    path.write_text(path.read_text().replace('"status": "complete"', '"status": "interrupted"'))
    repainted(roots / "a", 100)
    again = hydratune("resume=run", cwd=roots)
    assert again.returncode == 2 and "files: " in again.stderr and "->" in again.stderr, again.stdout + again.stderr


def test_a_sweep_over_two_folders_has_two_results(roots: Path) -> None:
    done = hydratune(
        "-m", *FOLDER, "stage=pretrain", "dataset.root=a,b", "hydra.sweep.dir=sweep", "sweep.jobs=1", cwd=roots
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((roots / "sweep" / "leaderboard.csv").read_text().splitlines()))
    assert len(rows) == 2 and "the same as" not in done.stdout
    runs = [path.parent for path in (roots / "sweep").glob("*/run.json")]
    assert len({record(run)["fingerprint"] for run in runs}) == 2
    assert len({checkpoint.model_hash(next((run / "checkpoints").iterdir())) for run in runs}) == 2


def test_a_pretraining_and_features_of_other_pixels_are_not_taken(roots: Path) -> None:
    """init_from=auto and freeze.cache=disk know data by its contents."""
    options = [
        *FOLDER, "stage=finetune", "freeze=head_only", "freeze.cache=disk", "dataset@pretrain.dataset=image_folder",
        *(f"pretrain.{option}" for option in FOLDER if option.startswith(("dataset.", "epochs"))),
    ]  # fmt: skip
    cache, runs = {"HYDRATUNE_CACHE": str(roots / "cache")}, []
    for name, root in (("first", "a"), ("second", "b"), ("third", "a")):
        where = [f"dataset.root={root}", f"pretrain.dataset.root={root}", f"name={name}"]
        done = hydratune(*options, *where, cwd=roots, **cache)
        assert done.returncode == 0, done.stdout + done.stderr
        runs.append(record(roots / "outputs" / "finetune" / name))
    first, second, third = (run["provenance"]["origin"] for run in runs)
    assert first == third != second and len(list((roots / "outputs" / "pretrain").glob("auto-*"))) == 2
    assert runs[0]["metrics"] == runs[2]["metrics"]
    assert len(list((roots / "cache").glob("features/*/features.bin"))) == 4  # train and val of both


def test_what_cannot_be_tested_is_said_before_training(roots: Path) -> None:
    none = hydratune(*FOLDER, "stage=pretrain", "dataset.root=a", "dataset.test_share=0", cwd=roots)
    assert none.returncode == 2 and "error: dataset.test_share=0: there is no test part" in none.stderr
    assert not (roots / "outputs").exists() or not list((roots / "outputs").rglob("run.json"))
    untested = hydratune(*FOLDER, "stage=pretrain", "dataset.root=a", "dataset.test_share=0", "test=false", cwd=roots)
    assert untested.returncode == 0, untested.stderr


def test_warnings_on_the_data_are_printed(roots: Path) -> None:
    (roots / "a" / "cat" / "notes.txt").touch()
    (roots / "a" / "dog" / "copy.bmp").write_bytes((roots / "a" / "cat" / "0.bmp").read_bytes())
    done = hydratune(*FOLDER, "stage=pretrain", "dataset.root=a", cwd=roots)
    assert "warning: 1 file or folder is left alone" in done.stdout and "cat/notes.txt" in done.stdout
    assert "warning: 1 images are there under more than one label" in done.stdout
    refused = hydratune(*FOLDER, "stage=pretrain", "dataset.root=a", "dataset.duplicates=refuse", cwd=roots)
    assert refused.returncode == 2 and "dataset.duplicates=refuse" in refused.stderr
