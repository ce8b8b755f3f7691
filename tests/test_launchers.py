"""Other launchers and sweepers of Hydra, each for real; what is not installed is skipped."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import TINY, hydratune

SMALL = [*TINY, "stage=finetune", "init_from=null", "model=mlp", "epochs=2", "runtime.threads=1"]


def complete(home: Path) -> list[str]:
    return sorted(p.parent.name for p in home.glob("*/run.json") if '"status": "complete"' in p.read_text())


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
        pytest.param("ray", "hydra_ray_launcher", ["hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
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


def test_what_is_absent_says_what_installs_it(tmp_path: Path) -> None:
    from hydratune.command import PLUGINS, explain
    from tests.conftest import compose_config

    for group, extras in PLUGINS.items():
        for option, extra in extras.items():
            try:
                compose_config([f"{group}={option}"])
            except Exception as error:
                assert f"pip install 'hydratune[{extra}]'" in str(explain(error, [f"{group}={option}"]))
