"""How a sweep ends: winners whose test fails, jobs that failed before they began, soups, and an end told once."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hydratune.record import checkpoint
from tests.conftest import TINY, hydratune
from tests.faults.harness import record, scalars

FAST = [*TINY, "model=mlp", "steps=4", "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s"]


def rows(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "leaderboard.csv").read_text().splitlines()))


DATA = """
from pathlib import Path
from hydratune.data.images.shapes import Shapes

class Data(Shapes):
    def read(self, name):
        if name == "test" and Path("broken").exists():
            raise ValueError("the test split is broken")
        return super().read(name)
"""


@pytest.mark.scenario(42)
def test_a_winner_whose_test_fails_stays_complete_and_the_winner(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DATA)
    (tmp_path / "broken").write_text("")
    sweep = ["-m", *FAST, "stage=pretrain", "trust=[mine]", "dataset._target_=mine.Data"]
    first = hydratune(*sweep, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert first.returncode == 2, first.stdout + first.stderr
    assert "the test of the best job" in first.stderr and "the test split is broken" in first.stderr
    assert [r["status"] for r in rows(tmp_path / "s")] == ["complete"] * 2
    winner = tmp_path / "s" / (tmp_path / "s" / "best").read_text().strip()
    known = record(winner)
    assert known["status"] == "complete" and "test split is broken" in known["test_error"]
    assert checkpoint.newest_valid(winner / "checkpoints")[0] is not None
    (tmp_path / "broken").unlink()
    again = hydratune(*sweep, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "test_accuracy" in record(winner)["metrics"] and "test_error" not in record(winner)
    assert record(winner)["started"] == known["started"]
    assert "the best job by itself, with the same bits:" in again.stdout


def test_a_job_that_failed_before_it_began_is_there_once(tmp_path: Path) -> None:
    """Its pretraining could not be made; then it can, and the same line makes all."""
    from PIL import Image

    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (32, 32), (i * 20, 100, 60)).save(tmp_path / "photos" / name / f"{i}.png")
    whole = (tmp_path / "photos" / "a" / "0.png").read_bytes()
    (tmp_path / "photos" / "a" / "0.png").write_bytes(whole[:60])
    line = ["-m", *FAST, "stage=finetune", "dataset@pretrain.dataset=image_folder", "pretrain.dataset.root=photos",
            "pretrain.dataset.size=32", "pretrain.steps=2", "pretrain.batch_size=4"]  # fmt: skip
    first = hydratune(*line, cwd=tmp_path)
    assert first.returncode == 2 and "2 of 2 jobs failed" in first.stderr, first.stderr
    assert all("its pretraining failed" in r["note"] for r in rows(tmp_path / "s"))
    (tmp_path / "photos" / "a" / "0.png").write_bytes(whole)
    again = hydratune(*line, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [r["status"] for r in rows(tmp_path / "s")] == ["complete"] * 2
    assert len(list((tmp_path / "s").glob("*/run.json"))) == 2


@pytest.mark.parametrize("strategies", ["lora", "lora,none"])
def test_a_soup_of_low_rank_updates(tmp_path: Path, strategies: str) -> None:
    done = hydratune("-m", *FAST, "stage=finetune", "init_from=null", f"freeze={strategies}", "sweep.soup=uniform",
                     cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (soup,) = [r for r in rows(tmp_path / "s") if r["status"] == "soup"]
    names = checkpoint.load(tmp_path / "s" / "soup-uniform" / "checkpoints" / "step-00000000").model.keys()
    assert not [n for n in names if "lora" in n] and 0 <= float(soup["val accuracy"]) <= 1
    taken = hydratune(*TINY, "stage=finetune", "model=mlp", "init_from=s/soup-uniform", "steps=1", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr


def test_a_soup_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    line = ["-m", *FAST, "stage=pretrain"]
    assert hydratune(*line, cwd=tmp_path).returncode == 0
    for path in (tmp_path / "s").glob("*/checkpoints/*/manifest.json"):
        path.unlink()
    done = hydratune(*line, "sweep.soup=greedy", cwd=tmp_path)
    assert done.returncode == 2 and "sweep.soup=greedy failed: " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.scenario(43)
def test_an_end_that_is_killed_is_told_once(tmp_path: Path) -> None:
    """After TensorBoard has it and before run.json does."""
    code = (
        "import os, signal; from hydratune.record.run import Run; real = Run.update\n"
        "def update(self, **changes):\n"
        "    if changes.get('status') == 'complete': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(self, **changes)\n"
        "Run.update = update\n"
        "from hydratune.cli.main import main; main()"
    )
    options = [*TINY, "stage=pretrain", "model=mlp", "steps=6", "engine.eval_every=3"]
    whole = hydratune(*options, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for _ in range(2):
        line = [sys.executable, "-c", code, *options, "hydra.run.dir=run", "resume=auto"]
        assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == -signal.SIGKILL
    assert record(tmp_path / "run")["status"] == "running" and "events" in record(tmp_path / "run")
    done = hydratune("resume=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scalars(tmp_path / "run") == scalars(tmp_path / "whole") and "events" not in record(tmp_path / "run")
    counted = Counter((tag, step) for tag, seen in scalars(tmp_path / "run").items() for step, _ in seen)
    assert set(counted.values()) == {1}


@pytest.mark.slow
def test_the_winners_row_has_a_command_for_the_same_bits(tmp_path: Path) -> None:
    """Alone, with what its sweep chose for it: strategies drop each other's keys only in a sweep."""
    import shlex

    line = ["-m", *TINY, "stage=finetune", "model=resnet9_w16", "freeze=head_only,lp_ft", "freeze.fraction=0.5",
            "optimizer.lr=0.01", "steps=4", "pretrain.steps=2", "hydra.sweep.dir=s"]  # fmt: skip
    done = hydratune(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for home, path in (("a", "freeze=head_only"), ("b", "freeze=lp_ft")):
        known = record(tmp_path / "s" / path)
        words = shlex.split(known["again"])
        assert words[0] == "hydratune" and f"runtime.threads={known['runtime']['threads']}" in words
        assert any(w.startswith("pretrain.runtime.layout=") for w in words)
        alone = hydratune(*words[1:], f"hydra.run.dir={home}", "test=false", cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        assert record(tmp_path / home)["checkpoint"] == known["checkpoint"]
    assert len(list(tmp_path.glob("outputs/pretrain/*/run.json"))) == 1
