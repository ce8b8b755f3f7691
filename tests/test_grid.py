"""Jobs of a sweep beside the product of all values: keys that go in step, and seeds of each job."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hydratune.sweep.grid import in_step, repeated
from tests.conftest import TINY, hydratune
from tests.faults.harness import record

LINE = ["-m", *TINY, "stage=finetune", "init_from=null", "model=mlp", "steps=4", "hydra.sweep.dir=s"]
VALUES = {"a": ["1", "2"], "b": ["x", "y"], "c": ["7", "8", "9"]}
JOBS = [[f"a={a}", f"b={b}", f"c={c}"] for a in "12" for b in "xy" for c in "789"]


def names(home: Path) -> list[str]:
    return sorted(p.parent.name for p in home.glob("*/run.json"))


def test_keys_in_step_have_their_values_together() -> None:
    kept = [JOBS[i] for i in in_step(JOBS, [["a", "b"]], VALUES)]
    assert kept == [[f"a={a}", f"b={b}", f"c={c}"] for a, b in (("1", "x"), ("2", "y")) for c in "789"]
    assert in_step(JOBS, [], VALUES) == list(range(12))


def test_a_value_that_comes_twice_is_paired_with_both() -> None:
    values = {"a": ["1", "2", "3"], "b": ["x", "x", "y"]}
    jobs = [[f"a={a}", f"b={b}"] for a in values["a"] for b in values["b"]]
    assert [jobs[i] for i in in_step(jobs, [["a", "b"]], values)] == [["a=1", "b=x"], ["a=2", "b=x"], ["a=3", "b=y"]]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (["a", "c"], r"sweep\.zip: a has 2 values, c has 3 values"),
        (["a", "bb"], r"sweep\.zip: bb is no key with several values; nearest: "),
    ],
)
def test_what_cannot_go_in_step_is_refused(group: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        in_step(JOBS, [group], VALUES)


def test_seeds_of_a_job() -> None:
    assert repeated(["a=1", "seed=5"], 3, 5) == [["a=1", "seed=5"], ["a=1", "seed=6"], ["a=1", "seed=7"]]
    assert repeated(["a=1"], 1, 0) == [["a=1"]]


def test_a_paired_sweep(tmp_path: Path) -> None:
    pairs = ["sweep.zip=[[optimizer.lr,freeze]]", "optimizer.lr=1e-3,1e-2", "freeze=none,head_only", "seed=1,2,3"]
    done = hydratune(*LINE, *pairs, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [("none", "0.001"), ("head_only", "0.01")]
    assert names(tmp_path / "s") == sorted(
        f"freeze={f},optimizer.lr={lr},seed={s}" for f, lr in cells for s in (1, 2, 3)
    )
    again = hydratune(*LINE, *pairs, cwd=tmp_path)
    assert again.returncode == 0 and "6 of 6 jobs are as far already" in again.stdout
    refused = hydratune(*LINE, *pairs[:2], "freeze=none,head_only,lora", cwd=tmp_path)
    assert refused.returncode == 2 and "optimizer.lr has 2 values, freeze has 3 values" in refused.stderr


def test_a_repeated_sweep_has_a_cell_of_several_seeds(tmp_path: Path) -> None:
    done = hydratune(*LINE, "optimizer.lr=1e-3,1e-2", "sweep.repeat=3", "seed=4", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(tmp_path / "s") == sorted(f"optimizer.lr={lr},seed={s}" for lr in ("0.001", "0.01") for s in (4, 5, 6))
    assert record(tmp_path / "s/optimizer.lr=0.01,seed=6")["status"] == "complete"
    rows = list(csv.DictReader((tmp_path / "s/leaderboard.csv").read_text().splitlines()))
    assert {row["seed"] for row in rows} == {"4", "5", "6"} and "│ 3 │" in done.stdout
    refused = hydratune(*LINE, "seed=1,2", "sweep.repeat=3", cwd=tmp_path)
    assert refused.returncode == 2 and "the seed is swept already" in refused.stderr


def test_optuna_is_told_the_mean_over_seeds(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.config")
    done = hydratune(
        *LINE, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.1)",
        "sweep.repeat=2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(sqlite3.connect(tmp_path / "s/optuna.db")) as db:
        told = [value for (value,) in db.execute("select value from trial_values order by trial_id")]
    cells: dict[str, list[float]] = {}
    for name in names(tmp_path / "s"):
        cells.setdefault(name.partition(",")[0], []).append(record(tmp_path / "s" / name)["metrics"]["val_accuracy"])
    assert sorted(told) == pytest.approx(sorted(sum(v) / 2 for v in cells.values())) and len(cells) == 2
