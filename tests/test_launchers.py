"""Other launchers and sweepers of Hydra, each for real; what is not installed is skipped."""

from __future__ import annotations

import csv
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import TINY, hydratune

SMALL = [*TINY, "stage=finetune", "init_from=null", "model=mlp", "epochs=2", "runtime.threads=1"]


def complete(home: Path) -> list[str]:
    return sorted(p.parent.name for p in home.glob("*/run.json") if '"status": "complete"' in p.read_text())


@pytest.mark.slow
def test_optuna_maximises_goes_on_and_agrees_with_our_table(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    command = [
        "-m", *SMALL, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=s",
        "optimizer.lr=tag(log,interval(1e-6,1e-1))", "freeze=none,head_only", "hydra.sweeper.sampler.seed=1",
    ]  # fmt: skip
    first = hydratune(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    again = hydratune(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    with closing(sqlite3.connect(tmp_path / "s" / "optuna.db")) as db:
        states = [s for (s,) in db.execute("select state from trials")]
        (best,) = db.execute("select max(value) from trial_values").fetchone()
        (direction,) = db.execute("select direction from study_directions").fetchone()
    assert states == ["COMPLETE"] * 8 and direction == "MAXIMIZE"
    table = list(csv.DictReader((tmp_path / "s" / "leaderboard.csv").read_text().splitlines()))
    assert float(table[0]["val accuracy"]) == pytest.approx(best, abs=5e-5)
    assert f"best_value: {best:.3}"[:16] in (tmp_path / "s" / "optimization_results.yaml").read_text()
    assert sum(bool(r["test accuracy"]) for r in table) <= 2  # the winner's, once at the end of each line


def test_optuna_tolerates_failures(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = hydratune(
        "-m", *SMALL, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=s",
        "optimizer.lr=1e30,0.01", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert complete(tmp_path / "s")


@pytest.mark.parametrize(
    ("launcher", "package", "more"),
    [
        (
            "submitit_local",
            "hydra_submitit_launcher",
            ["hydra.launcher.cpus_per_task=1"],
        ),
        ("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        pytest.param("ray", "hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
        ("basic", "hydratune", []),
    ],
)
def test_each_job_is_a_process_of_its_own(tmp_path: Path, launcher: str, package: str, more: list[str]) -> None:
    pytest.importorskip(f"hydra_plugins.{package}")
    done = hydratune(
        "-m", *SMALL, f"hydra/launcher={launcher}", *more, "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    names = complete(tmp_path / "s")
    assert len(names) == 2 and all("optimizer.lr=0.0" in n for n in names), names


SBATCH = """#!/usr/bin/env bash
# Starts the array's jobs, as sbatch would, and comes back at once; what was asked of the cluster stays beside.
cp "$1" "$SUBMITTED"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do
  SLURM_JOB_ID=7$i SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 \\
    SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here SUBMITTED="$SUBMITTED" \\
    nohup bash -c 'bash "$0" > "$SUBMITTED.$SLURM_ARRAY_TASK_ID" 2>&1; touch "$SUBMITTED.$SLURM_ARRAY_TASK_ID.ended"' \\
    "$1" > /dev/null 2>&1 &
done
echo Submitted batch job 7
"""
SRUN = """#!/usr/bin/env bash
while [ ! -x "$1" ]; do shift; done
exec "$@"
"""
SACCT = """#!/usr/bin/env bash
echo 'JobID|State|NodeList'
for i in 0 1; do
  if [ -e "$SUBMITTED.$i.ended" ]; then echo "7_$i|COMPLETED|here"; else echo "7_$i|RUNNING|here"; fi
done
"""


def test_slurm_is_asked_for_what_was_said(tmp_path: Path) -> None:
    """Slurm's commands are stand-ins that run the batch file at once; all above them is the real thing."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    done = hydratune(
        "-m", *SMALL, "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=9",
        "hydra.launcher.cpus_per_task=1", "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s", cwd=tmp_path,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", SUBMITTED=str(tmp_path / "batch"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "batch.0").read_text()
    batch = (tmp_path / "batch").read_text()
    for asked in ("--partition=gpu", "--time=9", "--cpus-per-task=1", "--array=0-1"):
        assert f"#SBATCH {asked}" in batch, batch
    assert len(complete(tmp_path / "s")) == 2


def test_what_is_absent_says_what_installs_it(tmp_path: Path) -> None:
    from hydratune.config.errors import PLUGINS, explain
    from tests.conftest import compose_config

    for group, extras in PLUGINS.items():
        for option, extra in extras.items():
            try:
                compose_config([f"{group}={option}"])
            except Exception as error:
                assert f"pip install 'hydratune[{extra}]'" in str(explain(error, [f"{group}={option}"]))
