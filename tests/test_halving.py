"""Who goes on: without waiting for the others, within a time, and beyond the edge of a grid."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydratune.config.job import Job
from hydratune.record.run import write_record
from hydratune.record.run_record import RunRecord
from hydratune.sweep import halving, rungs
from hydratune.sweep.budget import Budget, Forecast, part_of
from hydratune.sweep.plan import Entry, Unit
from hydratune.sweep.pool import Places
from hydratune.sweep.ranking import Edge
from hydratune.sweep.rungs import Asynchronous
from hydratune.sweep.settings import SweepSettings, seconds_of_budget
from tests.conftest import hydratune
from tests.test_sweep import FAST, FINETUNE, record, rows, same_weights


def entry(number: int, home: Path, freeze: str = "none", seed: str = "1", lr: str | None = None) -> Entry:
    config: Any = None  # nothing of it is looked at
    job = Job(config, home / f"job{number}", {"freeze": freeze}, [], "", [])
    varies = {"freeze": freeze, "lr": lr or str(number), "seed": seed}
    return Entry(number, [], varies, job.directory, job)


def came(job: Entry, value: float, steps: int = 90, last_phase: int = 0) -> Entry:
    """Its history says that it has the same value everywhere."""
    assert job.job is not None
    job.directory.mkdir(parents=True, exist_ok=True)
    due = math.ceil((job.job.halt or 1.0) * steps / 10) * 10
    history = [[step, value] for step in range(10, due + 1, 10)]
    status = "paused" if due < steps else "complete"
    write_record(
        job.directory, RunRecord(status=status, num_steps=steps, step=due, last_phase=last_phase, history=history)
    )
    return job


def numbers(entries: list[Entry]) -> list[tuple[int, float | None]]:
    return [(e.number, e.job.halt) for e in entries if e.job is not None]


def test_whoever_is_among_the_best_so_far_goes_on_at_once(tmp_path: Path) -> None:
    rule = Asynchronous(3, 2)
    first = rule.take_up([entry(i, tmp_path) for i in range(6)])
    assert {halt for _, halt in numbers(first)} == {1 / 9}
    assert rule.heard(came(first[0], 0.5)) == [] and rule.heard(came(first[1], 0.7)) == []  # of two nobody is a third
    further = rule.heard(came(first[2], 0.6))
    assert numbers(further) == [(1, 1 / 3)]  # the best of three, though it came before
    assert rule.heard(came(first[3], 0.9)) != []  # now the best of four
    assert rule.heard(came(first[4], 0.1)) == []
    assert numbers(rule.heard(came(first[5], 0.2))) == []  # the best two of six went already
    assert rule.heard(came(further[0], 0.7)) == []
    why = rule.rest(first)
    assert sorted(why) == [0, 1, 2, 4, 5]  # 3 is on its way to the next rung
    assert why[4] == "halving: 6 of 6 at 11% of its steps" and why[1] == "halving: 1 of 1 at 33% of its steps"


def test_cells_wait_for_their_seeds_and_strategies_for_their_last_phase(tmp_path: Path) -> None:
    rule = Asynchronous(2, 1)
    jobs = [entry(i, tmp_path, seed=str(i % 2), lr=str(i // 2)) for i in range(4)]
    first = rule.take_up(jobs)
    assert rule.heard(came(first[0], 0.9)) == rule.heard(came(first[2], 0.5)) == rule.heard(came(first[3], 0.5)) == []
    assert numbers(rule.heard(came(first[1], 0.3))) == [(0, None), (1, None)]  # 0.6 on average: both seeds go on
    early = Asynchronous(2, 1)
    mixed = early.take_up([entry(10, tmp_path, "lp_ft"), entry(11, tmp_path, "none")])
    assert early.heard(came(mixed[0], 0.9, last_phase=80)) == []
    assert early.heard(came(mixed[1], 0.1)) == []  # one of each strategy: nobody is compared with the other
    assert numbers(early.best(mixed)) == [(10, None)]


def test_later_jobs_are_compared_with_earlier_ones_and_lost_ones_with_nobody(tmp_path: Path) -> None:
    rule = Asynchronous(2, 1)
    one = rule.take_up([entry(0, tmp_path)])
    assert rule.heard(came(one[0], 0.8)) == [] and numbers(rule.best(one)) == [(0, None)]
    two = rule.take_up([entry(1, tmp_path)])
    assert rule.heard(came(two[0], 0.6)) == [] and list(rule.rest(two)) == [1]
    three = rule.take_up([entry(2, tmp_path)])
    assert numbers(rule.heard(came(three[0], 0.9))) == [(2, None)]
    seeds = rule.take_up([entry(5, tmp_path, seed="1", lr="x"), entry(6, tmp_path, seed="2", lr="x")])
    assert rule.heard(came(seeds[0], 0.99)) == []
    assert numbers(rule.lost(seeds[1])) == [(5, None)]  # nobody waits for it any more


def test_the_best_share_is_rounded_down_for_those_who_do_not_wait() -> None:
    field = [halving.Standing(i, f"c{i}", "none", i / 10, True) for i in range(5)]
    assert [cell[0].number for cell in halving.go_on_already(field, 2)] == [4, 3]
    assert halving.go_on_already(field, 6) == []
    assert sorted(halving.goes_on(field, 2)) == [0, 1]  # who waits is rounded up


# ---- within a time


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86400)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of_budget(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "1h30", "-5m", "0s", "5 m", "5min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"sweep.budget=.*such as 90s"):
        SweepSettings(budget=text)


def test_a_budget_and_a_factor_are_not_both_given() -> None:
    from hydratune.sweep.settings import Halving

    with pytest.raises(ValueError, match="finds sweep.halving.factor itself"):
        SweepSettings(budget="5m", halving=Halving(factor=3))
    with pytest.raises(ValueError, match="needs sweep.halving.factor"):
        Halving(asynchronous=True)


def cost(seconds: float, steps: int = 90, looks: int = 9) -> dict[str, Any]:
    phases = [(0, steps, 0, seconds / steps, 0.0)]
    own = {"steps": steps, "last_phase": 0, "done": 0, "whole": seconds, "phases": phases, "looks": looks, "look": 0.0,
           "cached": False, "fork": 0}  # fmt: skip
    return {"fork": 0, "seconds": own, "operations": own}


def forecast(home: Path, count: int, seconds: float) -> tuple[Forecast, list[Entry]]:
    jobs = [entry(i, home) for i in range(count)]
    units = [Unit([job], 1) for job in jobs]
    return Forecast(units, Places(2, 2), {i: cost(seconds) for i in range(count)}), jobs


def test_costs_of_a_part_of_the_way() -> None:
    part = part_of(cost(90.0), 1 / 3, 2 / 3)["seconds"]
    assert (part["done"], part["steps"], part["looks"]) == (30, 60, pytest.approx(3))


def test_the_forecast_counts_workers_and_shares_of_the_way(tmp_path: Path) -> None:
    seen, _ = forecast(tmp_path, 4, 90.0)
    assert seen.seconds({0, 1, 2, 3}, 0.0, 1.0) == pytest.approx(180.0)  # two at a time
    assert seen.seconds({0, 1, 2}, 1 / 3, 1.0) == pytest.approx(120.0)
    assert seen.seconds(set(), 0.0, 1.0) == 0.0


@pytest.mark.parametrize(("seconds", "halved"), [(2000.0, False), (500.0, True), (200.0, True), (190.0, True)])
def test_as_little_is_halved_as_fits(tmp_path: Path, seconds: float, halved: bool) -> None:
    """Twelve jobs of 90 s, two at a time: 540 s in full."""
    seen, jobs = forecast(tmp_path, 12, 90.0)
    plan = Budget(seconds, seen, jobs)
    assert plan.fits and (plan.planned > 1) is halved
    assert all(halt >= 1 / 9 for halt in plan.halts)  # no halt before the first evaluation
    if halved:
        tighter = Budget(seconds * 1.5, seen, jobs)
        assert tighter._total(0, 1, tighter.halts, tighter.planned) >= plan._total(0, 1, plan.halts, plan.planned)


def test_too_little_time_is_said_and_the_rest_of_the_way_is_kept_free(tmp_path: Path) -> None:
    seen, jobs = forecast(tmp_path, 12, 90.0)
    plan = Budget(60.0, seen, jobs)
    assert not plan.fits and "more than there is" in plan.sentence("60s")
    enough = Budget(200.0, seen, jobs)
    now = time.monotonic()
    until = enough.until(enough.halts[0])
    assert until < enough.deadline - 0.5 * 90.0 and now < until  # one job comes to its end


def test_how_wrong_a_forecast_was_is_taken_into_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    seen, jobs = forecast(tmp_path, 12, 90.0)
    quick, slow, again = (Budget(400.0, seen, jobs) for _ in range(3))
    halt = quick.halts[0]
    there = seen.seconds(set(range(12)), 0.0, halt)
    clock[0] += there
    few = quick.factor(halt, jobs)
    clock[0] += 2 * there
    assert slow.factor(halt, jobs) > few and slow.slower == pytest.approx(3.0)
    assert Budget(400.0, seen, jobs, quick.told()).factor(halt, jobs) == few  # another command decides as the first did
    assert again.until(None) == again.deadline


def test_who_is_stopped_says_why(tmp_path: Path) -> None:
    job = came(replace(entry(0, tmp_path)), 0.5)
    write_record(job.directory, RunRecord.read(job.directory).changed(status="interrupted", error="SIGTERM"))
    assert rungs.end(job, "sweep.budget=5m was spent") == 0.5
    told = RunRecord.read(job.directory)
    assert (told.status, told.stopped, told.error) == ("stopped", "sweep.budget=5m was spent", None)


# ---- beyond an edge


@pytest.mark.parametrize(
    ("value", "before", "following"),
    [("0.01", 0.001, "0.1"), ("0.0001", 0.001, "1e-05"), ("8", 4.0, "16"), ("0", 0.1, "-0.1"), ("0.3", 0.1, "0.9")],
)
def test_the_next_value_keeps_the_proportion(value: str, before: float, following: str) -> None:
    assert Edge("lr", value, float(value), before, float(value) < before).beyond == following


# ---- as a user starts them


@pytest.mark.slow
def test_jobs_that_do_not_wait_have_the_bits_of_a_full_sweep(tmp_path: Path) -> None:
    job = [*FINETUNE, "freeze=none,head_only", "optimizer.lr=0.003,0.01,0.03", "epochs=8", "engine.eval_every=3"]
    halved = [*job, "sweep.halving.factor=2", "sweep.halving.asynchronous=true", "hydra.sweep.dir=halved"]
    done = hydratune("-m", *halved, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = rows(tmp_path / "halved")
    statuses = [r["status"] for r in table]
    assert 1 <= statuses.count("complete") < 6 and set(statuses) == {"complete", "stopped"}, statuses
    assert all("halving: " in r["note"] for r in table if r["status"] == "stopped")
    full = hydratune("-m", *job, "hydra.sweep.dir=full", cwd=tmp_path)
    assert full.returncode == 0
    for winner in [r["directory"] for r in table if r["status"] == "complete"]:
        assert same_weights(tmp_path / "halved" / winner, tmp_path / "full" / winner)
        assert record(tmp_path / "halved" / winner)["history"] == record(tmp_path / "full" / winner)["history"]
    again = hydratune("-m", *halved, cwd=tmp_path)
    assert again.returncode == 0 and rows(tmp_path / "halved") == table, again.stdout


@pytest.mark.slow
def test_optunas_trials_are_stopped_at_the_rungs_of_earlier_ones(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = hydratune(
        "-m", *FINETUNE, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1",
        "optimizer.lr=tag(log,interval(1e-7,1e-1))", "sweep.halving.factor=2", "sweep.halving.asynchronous=true",
        "epochs=8", "hydra.sweep.dir=s", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [r["status"] for r in rows(tmp_path / "s")]
    assert len(statuses) == 6 and statuses.count("stopped") >= 1 and statuses.count("complete") >= 1, statuses


def test_enough_time_halves_nothing_and_too_little_is_gone_on_with(tmp_path: Path) -> None:
    sweep = ["-m", *FAST, "optimizer.lr=0.01,0.02", "hydra.sweep.dir=s"]
    short = hydratune(*sweep, "epochs=4000", "sweep.budget=8s", cwd=tmp_path)
    assert short.returncode == 0, short.stdout + short.stderr
    assert "more than there is" in short.stdout
    table = rows(tmp_path / "s")
    assert all(r["status"] in ("stopped", "waiting") for r in table), table  # a slow machine began neither
    assert all("was spent" in r["note"] for r in table if r["status"] == "stopped"), table
    done = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02", "sweep.budget=1h", "hydra.sweep.dir=t", cwd=tmp_path)
    assert done.returncode == 0 and "in full" in done.stdout
    assert [r["status"] for r in rows(tmp_path / "t")] == ["complete", "complete"]


def test_the_grid_goes_on_beyond_its_edge(tmp_path: Path) -> None:
    done = hydratune(
        "-m",
        *FAST,
        "epochs=6",
        "optimizer.lr=1e-4,1e-3",
        "seed=1,2",
        "sweep.extend=true",
        "hydra.sweep.dir=s",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rates = [r["optimizer.lr"] for r in rows(tmp_path / "s")]
    assert rates.count("0.01") == 2 and "sweep.extend=true tries 0.01" in done.stdout, done.stdout
    assert {rates.count(rate) for rate in rates} == {2}  # each with both seeds
    refused = hydratune("-m", *FAST, "optimizer.lr=0.01,0.02", "sweep.budget=soon", cwd=tmp_path)
    assert refused.returncode == 2 and "such as 90s" in refused.stderr
