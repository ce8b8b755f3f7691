"""Sweeps as a user starts them: isolation, recognition, sharing, ranking, halving."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.record import checkpoint
from tests.conftest import TINY, hydratune
from tests.faults.harness import allowed, wait_until
from tests.tiny import same

FAST = [*TINY, "stage=pretrain", "model=mlp", "epochs=2", "runtime.threads=1"]
FINETUNE = [*TINY, "stage=finetune", "init_from=null", "epochs=4", "runtime.threads=1"]


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def rows(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "leaderboard.csv").read_text().splitlines()))


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = (checkpoint.load(checkpoint.newest_valid(p / "checkpoints")[0]) for p in (a, b))  # type: ignore[arg-type]
    return same(dict(ours.model), dict(theirs.model))


USER = """
import os, sys
from torch import nn

def network(how: str, width: int, input_shape):
    class Net(nn.Module):
        in_channels = None
        head_name = "head"
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU())
            self.how = how
        def layer_groups(self):
            return [("body", Backbone(self.body, how))]
    return Net()

class Backbone(nn.Module):
    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how, self.count = inner, how, 0
    def forward(self, x):
        if self.training:
            self.count += 1
        if self.count > 3:
            if self.how == "raises":
                raise RuntimeError("as asked")
            if self.how == "dies":
                os._exit(9)
            if self.how == "leaves":
                sys.exit(3)
            if self.how == "killed":
                os.kill(os.getpid(), 9)
        return self.inner(x)
"""


@pytest.mark.scenario(25)
def test_whatever_one_job_does_the_others_finish(tmp_path: Path) -> None:
    """Reliability 25: raise, os._exit, sys.exit and SIGKILL."""
    (tmp_path / "mine.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", "-m", *TINY, "stage=pretrain", "epochs=2", "trust=[mine]",
         "model._target_=mine.network", "++model.how=well,raises,dies,leaves,killed", "hydra.sweep.dir=sweep"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    home = tmp_path / "sweep"
    assert done.returncode == 2, done.stdout + done.stderr
    assert "4 of 5 jobs failed" in done.stderr
    table = {r["model.how"]: r for r in rows(home)}
    assert {k: r["status"] for k, r in table.items()} == {
        "well": "complete", "raises": "failed", "dies": "failed", "leaves": "failed", "killed": "failed",
    }  # fmt: skip
    said = {k: r["note"] for k, r in table.items()}
    assert "as asked" in said["raises"] and "exit code 9" in said["dies"], said
    assert "sys.exit(3)" in said["leaves"] and "SIGKILL" in said["killed"], said
    for how in ("raises", "dies", "leaves", "killed"):
        assert (home / table[how]["directory"] / "traceback.txt").stat().st_size
    assert "RuntimeError: as asked" in (home / table["raises"]["directory"] / "traceback.txt").read_text()
    assert (home / "best").read_text().strip() == table["well"]["directory"] and table["well"]["test accuracy"]


@pytest.mark.scenario(26)
def test_the_same_line_again_does_what_is_left(tmp_path: Path) -> None:
    """Finished jobs are skipped, failed ones tried again; the grid may grow by values and by keys."""
    sweep = ["-m", *FAST, "hydra.sweep.dir=sweep"]
    first = hydratune(*sweep, "optimizer.lr=0.01,1e30", cwd=tmp_path)
    assert first.returncode == 2 and "1 of 2 jobs failed" in first.stderr, first.stderr
    started = {p.parent.name: record(p.parent)["started"] for p in tmp_path.glob("sweep/*/run.json")}
    assert len(started) == 2
    again = hydratune(*sweep, "optimizer.lr=0.01,0.02", "seed=0,1", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 4 jobs are as far already" in again.stdout
    table = rows(tmp_path / "sweep")
    assert [r["status"] for r in table].count("complete") == 4
    kept = record(tmp_path / "sweep" / "optimizer.lr=0.01")
    assert kept["started"] == started["optimizer.lr=0.01"] and kept["status"] == "complete"
    assert {r["seed"] for r in table if r["status"] == "complete"} == {"0", "1"}


def test_equal_jobs_run_once(tmp_path: Path) -> None:
    """freeze.groups is no key of head_only: a sweep drops it there, and two cells ask for the same."""
    done = hydratune(
        "-m", *FINETUNE, "freeze=head_only,last_groups", "freeze.groups=0,1", "hydra.sweep.dir=s", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "s")
    assert len(table) == 4 and sum("the same as" in r["note"] for r in table) == 1
    assert len(list((tmp_path / "s").glob("freeze*/run.json"))) == 3


STRATEGIES = "none,head_only,last_groups,lp_ft,gradual,lora"


@pytest.mark.scenario(27)
@pytest.mark.slow
def test_a_shared_sweep_is_what_each_job_is_alone(tmp_path: Path) -> None:
    """Bit for bit, for sharing on and off and for a job by itself; only run.json says who ran beside whom."""
    job = [*FINETUNE, "model=resnet9_w16", f"freeze={STRATEGIES}", "optimizer.lr=0.01,0.03", "engine.eval_every=6"]
    for share, name in (("auto", "shared"), ("off", "apart")):
        done = hydratune("-m", *job, f"sweep.share={share}", f"hydra.sweep.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    directories = sorted(p.parent.name for p in (tmp_path / "apart").glob("freeze*/run.json"))
    assert len(directories) == 12
    for name in directories:
        shared, apart = tmp_path / "shared" / name, tmp_path / "apart" / name
        assert same_weights(shared, apart), name
        a, b = record(shared), record(apart)
        assert a["history"] == b["history"] and a["fingerprint"] == b["fingerprint"], name
        assert {p.name for p in shared.iterdir() if "tfevents" not in p.name} == {
            p.name for p in apart.iterdir() if "tfevents" not in p.name
        }
    alone = hydratune(
        *FINETUNE, "model=resnet9_w16", "freeze=lp_ft", "optimizer.lr=0.03", "engine.eval_every=6",
        "hydra.run.dir=alone", cwd=tmp_path,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert same_weights(tmp_path / "alone", tmp_path / "shared" / "freeze=lp_ft,optimizer.lr=0.03")


@pytest.mark.scenario(26)
@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hydratune", "-m", *FINETUNE, "freeze=none,head_only", "optimizer.lr=0.01,0.03",
               "epochs=30", "engine.eval_every=6", "hydra.sweep.dir=killed"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = tmp_path / "killed"
    wait_until(lambda: len(list(begun.glob("*/checkpoints/step-*/manifest.json"))) >= 4 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [r["status"] for r in rows(tmp_path / "killed")] == ["complete"] * 4
    whole = hydratune(*command[3:-1], "hydra.sweep.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for path in (tmp_path / "whole").glob("freeze*"):
        assert same_weights(path, tmp_path / "killed" / path.name), path.name
        assert record(path)["history"] == record(tmp_path / "killed" / path.name)["history"]


def test_interrupt_stops_all_within_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hydratune", "-m", *FAST, "epochs=100000", "optimizer.lr=0.01,0.02",
               "sweep.share=off", "hydra.sweep.dir=s"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        saved = tmp_path / "s"
        wait_until(lambda: list(saved.glob("*/checkpoints/step-*/manifest.json")) or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=allowed(10))
    finally:
        process.kill()  # nothing that trains for ever is left behind by a test that fails
    assert process.returncode == 130 and "interrupted" in errors
    assert f"the same command with hydra.sweep.dir={tmp_path / 's'} goes on" in errors
    statuses = {record(p.parent)["status"] for p in tmp_path.glob("s/*/run.json")}
    assert statuses == {"interrupted"}


def test_dry_run_shows_what_is_shared_and_writes_nothing(tmp_path: Path) -> None:
    done = hydratune(
        "-m", *FINETUNE, "model=resnet9_w16", "freeze=none,head_only", "optimizer.lr=0.01,0.03", "dry_run=true",
        "sweep.jobs=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the trunk below head with" in done.stdout and "about" in done.stdout and "times as fast" in done.stdout
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.glob("outputs/sweeps/*"))


@pytest.mark.slow
def test_halving_goes_on_from_checkpoints_exactly(tmp_path: Path) -> None:
    job = [*FINETUNE, "freeze=none,lp_ft", "optimizer.lr=0.003,0.01,0.03", "epochs=9", "engine.eval_every=6"]
    done = hydratune("-m", *job, "sweep.halving.factor=3", "hydra.sweep.dir=halved", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "halved")
    statuses = [r["status"] for r in table]
    # Two of six: LP-FT comes to its last phase after the last halt, so that each strategy keeps one of its own.
    assert statuses.count("stopped") == 4 and statuses.count("complete") == 2, statuses
    assert all("halving: " in r["note"] for r in table if r["status"] == "stopped")
    winner = next(r["directory"] for r in table if r["status"] == "complete")
    stopped = next(r["directory"] for r in table if r["status"] == "stopped")
    full = hydratune("-m", *job, "hydra.sweep.dir=full", cwd=tmp_path)
    assert full.returncode == 0
    assert same_weights(tmp_path / "halved" / winner, tmp_path / "full" / winner)
    assert record(tmp_path / "halved" / winner)["history"] == record(tmp_path / "full" / winner)["history"]
    asked = hydratune(f"resume=halved/{stopped}", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert same_weights(tmp_path / "halved" / stopped, tmp_path / "full" / stopped)


def test_the_report_at_any_time(tmp_path: Path) -> None:
    done = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = Path(sys.executable).parent / "hydratune-report"
    shown = subprocess.run([report, "s"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "optimizer.lr=0.02" in shown.stdout, shown.stderr
    wrong = subprocess.run([report, "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no sweep has been here" in wrong.stderr
    page = (tmp_path / "s" / "report.html").read_text()
    assert (
        page.count("<svg") == 1  # the curves: with one key there is no heat map
        and page.count("<polyline class=hit") == 2
        and "optimizer.lr=0.02" in page
        and "http" not in page.split("<pre>")[0]
    )
    assert (tmp_path / "s" / "curves.png").read_bytes().startswith(b"\x89PNG")
    taken = hydratune(*TINY, "stage=finetune", "model=mlp", "init_from=best:s", "epochs=1", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr


def test_two_sweeps_in_one_directory_do_not_meet(tmp_path: Path) -> None:
    from hydratune.record.claim import claim

    held = claim(tmp_path / "s")
    done = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s", cwd=tmp_path)
    os.close(held)
    assert done.returncode == 2 and "in use by another live" in done.stderr


@pytest.mark.parametrize("key", ["sweep.jobs=0", "sweep.share=maybe", "sweep.halving.factor=1", "sweep.halfing=2"])
def test_wrong_settings_are_refused(tmp_path: Path, key: str) -> None:
    done = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02", key, cwd=tmp_path)
    assert done.returncode == 2 and key.split("=")[0] in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("how", ["uniform", "greedy"])
def test_a_soup_is_one_more_row(tmp_path: Path, how: str) -> None:
    done = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02,0.03", f"sweep.soup={how}", "hydra.sweep.dir=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = [r for r in rows(tmp_path / "s") if r["status"] == "soup"]
    assert row["directory"] == f"soup-{how}" and f"{how} soup of" in row["note"] and float(row["val accuracy"]) >= 0
    best = max(float(r["val accuracy"]) for r in rows(tmp_path / "s") if r["status"] == "complete")
    assert how == "uniform" or float(row["val accuracy"]) >= best
    of = record(tmp_path / "s" / f"soup-{how}")["lineage"]["of"]
    tensors = [checkpoint.load(_best(tmp_path / "s" / name)).model for name in of]
    mixed = checkpoint.load(tmp_path / "s" / f"soup-{how}" / "checkpoints" / "step-00000000").model
    for name, tensor in mixed.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, torch.stack([t[name] for t in tensors]).mean(0), atol=1e-6), name
    taken = hydratune(*TINY, "stage=finetune", "model=mlp", f"init_from=s/soup-{how}", "epochs=1", cwd=tmp_path)
    assert taken.returncode == 0, taken.stderr


def _best(directory: Path) -> Path:
    return directory / record(directory)["checkpoint"]["path"]
