"""Names, recognition, sharing out, halving and ranking: pure, without a process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hydratune.record.run_record import RunRecord
from hydratune.sweep import halving, ranking
from hydratune.sweep.plan import Entry, directory_name, settled, shared_out


def entry(number: int, asked: str = "", home: Path = Path("s"), name: str = "") -> Entry:
    from hydratune.config.job import Job

    directory = home / (name or f"job{number}")
    config: Any = None  # nothing of it is looked at
    job = Job(config, directory, {}, [], "", [], config_hash=asked or f"asks{number}")
    return Entry(number, [], {}, directory, job)


def test_names_say_what_varies_and_are_safe() -> None:
    varies = {"optimizer.lr": "0.001", "freeze": "lp_ft", "seed": "2"}
    assert directory_name(varies) == "freeze=lp_ft,optimizer.lr=0.001,seed=2"
    assert directory_name({}) == "job"
    odd = ("[layer4,head]", "[layer4 head]", "a/../../b", "x" * 400, "é")
    strange = [directory_name({"freeze.train": v}) for v in odd]
    assert len(set(strange)) == 5 and all(re.fullmatch(r"[A-Za-z0-9._=,-]{1,140}", n) for n in strange), strange


def test_runs_are_known_by_what_they_ask_for(tmp_path: Path) -> None:
    known = {tmp_path / n: RunRecord(status="complete", config_hash=h) for n, h in (("old", "a"), ("job1", "else"))}
    first, second, third = settled([entry(0, "a", tmp_path), entry(1, "b", tmp_path), entry(2, "a", tmp_path)], known)
    assert first.directory.name == "old"  # the same job under another name
    assert second.directory.name == "job1-b"  # the name is taken by another one
    assert third.same_as == 0 and third.directory == first.directory


def test_work_is_shared_out_so_that_the_last_is_done_soonest() -> None:
    entries = [entry(i) for i in range(6)]
    own = {0: 9.0, 1: 9.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
    fork = {0: 0, 1: 0, 2: 5, 3: 5, 4: 5, 5: 5}

    def seconds(some: Any, trunk: float = 8.0) -> float:
        return sum(own[e.number] for e in some) + (trunk if any(fork[e.number] for e in some) else 0.0)

    units = shared_out(entries, 2, fork, seconds)
    assert sorted(e.number for u in units for e in u) == list(range(6)) and len(units) == 2
    where = {e.number: i for i, u in enumerate(units) for e in u}
    assert len({where[n] for n in (2, 3, 4, 5)}) == 1  # one trunk, and not two
    heads = entries[2:]
    assert len(shared_out(heads, 2, fork, seconds)) == 1  # the trunk is nearly all: one worker with all cores
    assert len(shared_out(heads, 2, fork, lambda s: seconds(s, trunk=0.1))) == 2


def standing(number: int, strategy: str, value: float, last: bool = True, cell: str = "") -> halving.Standing:
    return halving.Standing(number, cell or f"{strategy}{number}", strategy, value, last)


def test_halving_compares_strategies_only_in_their_last_phase() -> None:
    field = [("none", 0.9), ("none", 0.8), ("none", 0.7), ("lp_ft", 0.3), ("lp_ft", 0.2), ("lp_ft", 0.1)]
    early = [standing(i, s, v, last=s == "none") for i, (s, v) in enumerate(field)]
    out = halving.goes_on(early, 3)
    assert sorted(out) == [1, 2, 4, 5] and "of freeze=lp_ft" in out[4]
    late = [standing(i, s, v) for i, (s, v) in enumerate(field)]
    assert sorted(halving.goes_on(late, 3)) == [2, 3, 4, 5]
    assert halving.halts(3, 2) == pytest.approx([1 / 9, 1 / 3])


def test_halving_compares_cells_by_their_mean_over_seeds() -> None:
    seeds = [standing(0, "a", 0.9, cell="x"), standing(1, "a", 0.1, cell="x"), standing(2, "a", 0.6, cell="y"),
             standing(3, "a", 0.6, cell="y")]  # fmt: skip
    assert sorted(halving.goes_on(seeds, 2)) == [0, 1]


def sweep(home: Path, jobs: list[tuple[dict[str, str], float | None]], n: int = 1000) -> ranking.Ranking:
    home.mkdir(exist_ok=True)
    listed = []
    for i, (varies, value) in enumerate(jobs):
        (home / str(i)).mkdir()
        done = {"status": "complete", "metrics": {"val_accuracy": value}} if value is not None else {"status": "failed"}
        record = {**done, "monitor": "accuracy", "val_samples": n, "error": "" if value else "why"}
        (home / str(i) / "run.json").write_text(json.dumps(record))
        listed.append({"directory": str(i), "varies": varies, "strategy": varies.get("freeze", "")})
    keys = list(dict.fromkeys(k for v, _ in jobs for k in v))
    (home / "sweep.json").write_text(json.dumps({"command": "hydratune", "keys": keys, "jobs": listed}))
    return ranking.read(home)


def test_cells_fold_seeds_and_mark_what_is_beyond_the_noise(tmp_path: Path) -> None:
    values = {
        ("0.1", "none"): (0.80, 0.82, 0.81),
        ("0.01", "none"): (0.79, 0.83, 0.80),
        ("0.1", "lp_ft"): (0.5, 0.51, 0.5),
    }
    jobs: Any = [
        ({"optimizer.lr": lr, "freeze": f, "seed": str(s)}, v)
        for (lr, f), seen in values.items()
        for s, v in enumerate(seen)
    ]
    found = sweep(tmp_path / "s", [*jobs, ({"optimizer.lr": "9", "freeze": "none", "seed": "0"}, None)])
    best, close, far = found.cells
    assert best.mean == pytest.approx(0.81) and best.deviation == pytest.approx(0.01) and len(best.rows) == 3
    assert [found.against_best(cell).words for cell in (close, far)] == ["within the noise", "worse"]
    assert [c.strategy for c in ranking.best_of_each(found)] == ["none", "lp_ft"]
    assert found.winner is not None and found.winner.value == 0.82
    assert found.rows[-1].status == "failed" and ranking.job_table(found)[1][-1][0] == "-"


def test_one_seed_has_the_noise_of_its_validation_sample(tmp_path: Path) -> None:
    jobs: Any = [({"lr": "1"}, 0.80), ({"lr": "2"}, 0.79)]
    few, many = sweep(tmp_path / "few", jobs, n=100), sweep(tmp_path / "many", jobs, n=1_000_000)
    assert few.against_best(few.cells[1]).words == "one seed: within validation sampling"
    assert many.against_best(many.cells[1]).words == "one seed: beyond validation sampling"


@pytest.mark.parametrize(("best", "warned"), [("0.1", "upper"), ("0.001", "lower"), ("0.01", "")])
def test_the_edge_of_the_grid_is_warned_of(tmp_path: Path, best: str, warned: str) -> None:
    jobs: Any = [({"optimizer.lr": lr}, 0.9 if lr == best else 0.5) for lr in ("0.001", "0.01", "0.1")]
    said = sweep(tmp_path / "s", jobs).edges()
    assert (warned in str(said[0])) if warned else not said


def test_where_the_others_failed_no_edge_is_warned_of(tmp_path: Path) -> None:
    assert not sweep(tmp_path / "one", [({"lr": "0.1"}, 0.9), ({"lr": "0.01"}, None), ({"lr": "0.001"}, None)]).edges()
    words: Any = [({"freeze": "none", "lr": "0.1"}, 0.9), ({"freeze": "lora", "lr": "0.1"}, 0.5)]
    assert not sweep(tmp_path / "words", words).edges()
    assert not sweep(tmp_path / "two", [({"lr": "0.1"}, 0.9), ({"lr": "0.01"}, 0.5), ({"lr": "1"}, None)]).edges()
