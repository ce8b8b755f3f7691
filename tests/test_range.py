"""The range test of the learning rate: which rate is the best, which diverges, what is suggested, and the picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen
from hydratune.sweep import plots, ranking, rates, report
from tests.conftest import TINY, hydratune
from tests.test_ranking import sweep

KEYS = ("optimizer.lr", "freeze", "seed")
LOST = {"step": 3, "loss": math.inf, "sample_ids": [1]}


def tried(home: Path, losses: dict[str, float | None], values: dict[str, float] | None = None, **more: Any) -> Path:
    """losses: by rate as typed; None: not finite."""
    jobs = []
    for lr, loss in losses.items():
        job = {"optimizer.lr": lr, "freeze": "none", "seed": "1", "value": (values or {}).get(lr, 0.5), **more}
        jobs.append(job if loss is not None else {**job, "status": "failed", "nonfinite": LOST, "error": "NonFinite"})
    made = sweep(home, jobs, KEYS)
    for place, loss in enumerate(losses.values()):
        put_loss(made / str(place), loss)
    return made


def put_loss(home: Path, loss: float | None) -> None:
    record = json.loads((home / "run.json").read_text())
    record["metrics"] = {**record["metrics"], "val_loss": loss} if loss is not None else {}
    (home / "run.json").write_text(json.dumps(record))


def course(home: Path) -> rates.Course:
    (found,) = rates.courses(ranking.read(home))
    return found


def said(found: rates.Course) -> tuple[str | None, str | None, str | None, list[str]]:
    """(best, first that diverges, last before it, suggested)"""
    points = (found.best, found.end, found.last)
    best, end, last = (None if p is None else p.typed for p in points)
    return best, end, last, [p.typed for p in found.suggested]


RATES = ["1e-4", "1e-3", "3e-3", "1e-2", "3e-2", "0.1", "1"]


def losses(*values: float | None) -> dict[str, float | None]:
    return dict(zip(RATES, values, strict=True))


def test_a_job_that_is_not_finite_ends_the_range(tmp_path: Path) -> None:
    found = course(tried(tmp_path / "s", losses(2.3, 2.2, 2.0, 1.5, 1.8, 2.4, None)))
    assert said(found) == ("1e-2", "1", "0.1", ["1e-3", "3e-3", "1e-2", "3e-2"])
    assert [p.rate for p in found.points] == sorted(float(r) for r in RATES)


def test_a_loss_that_has_blown_up_ends_it_too(tmp_path: Path) -> None:
    """Four times the lowest, as other finders have it."""
    assert said(course(tried(tmp_path / "a", losses(2.3, 2.2, 2.0, 1.5, 6.1, 2.0, 2.0))))[1:3] == ("3e-2", "1e-2")
    assert said(course(tried(tmp_path / "b", losses(2.3, 2.2, 2.0, 1.5, 5.9, 2.0, 2.0))))[1:3] == (None, "1")


def test_what_diverges_above_is_not_suggested(tmp_path: Path) -> None:
    found = course(tried(tmp_path / "s", losses(2.3, 2.2, 2.0, 1.5, None, 1.6, 1.7)))
    assert said(found) == ("1e-2", "3e-2", "1e-2", ["1e-3", "3e-3", "1e-2"])


def test_where_every_rate_diverges_it_says_so(tmp_path: Path) -> None:
    found = course(tried(tmp_path / "s", losses(*[None] * 7)))
    assert said(found) == (None, "1e-4", None, []) and "every rate of freeze=none diverged" in rates.sentence(found)


def test_the_edges_of_the_grid_are_named(tmp_path: Path) -> None:
    low = course(tried(tmp_path / "a", losses(1, 2, 3, 4.5, 5, 6, 7)))
    assert rates.sentence(low).endswith("optimizer.lr=1e-4; the best is the lowest that was tried")
    high = course(tried(tmp_path / "b", losses(7, 6, 5, 4, 3, 2, 1)))
    assert rates.sentence(high).endswith("optimizer.lr=0.1,1; the best is the highest that was tried")
    assert rates.table(ranking.read(tmp_path / "b"))[1][0][-2] == "none diverged up to 1"


def test_without_losses_the_monitor_chooses(tmp_path: Path) -> None:
    made = tried(tmp_path / "s", losses(*[1.0] * 7), dict(zip(RATES, (1, 2, 3, 4, 5, 4, 3), strict=True)))
    for path in made.glob("*/run.json"):
        record = json.loads(path.read_text())
        del record["metrics"]["val_loss"]
        path.write_text(json.dumps(record))
    found = course(made)
    assert not found.by_loss and said(found)[0] == "3e-2" and "rates" in plots.pictures(ranking.read(made))


def test_seeds_are_averaged_and_one_that_diverges_counts(tmp_path: Path) -> None:
    jobs = [
        {"optimizer.lr": r, "freeze": f, "seed": s, "value": 0.5}
        for f in ("none", "lora") for r in RATES for s in ("1", "2")
    ]  # fmt: skip
    jobs[-1] |= {"status": "failed", "nonfinite": LOST, "error": "NonFinite"}
    made = sweep(tmp_path / "s", jobs, KEYS)
    for place, job in enumerate(jobs):
        best = 1e-2 if job["freeze"] == "lora" else 1e-3
        put_loss(made / str(place), 1 + abs(math.log10(float(job["optimizer.lr"]) / best)) + 0.5 * (job["seed"] == "2"))
    lora, none = rates.courses(ranking.read(made))
    assert (lora.strategy, none.strategy) == ("lora", "none")
    assert lora.best and lora.best.typed == "1e-2" and lora.best.loss == pytest.approx(1.25)
    assert lora.end and lora.end.typed == "1" and none.best and none.best.typed == "1e-3" and none.end is None


def test_a_few_rates_are_no_range(tmp_path: Path) -> None:
    jobs = [{"optimizer.lr": r, "freeze": "none", "seed": "1", "value": 0.5} for r in RATES[:4]]
    found = ranking.read(sweep(tmp_path / "s", jobs, KEYS))
    assert not rates.courses(found) and "rates" not in plots.pictures(found) and not rates.table(found)[1]


def test_running_jobs_are_not_judged(tmp_path: Path) -> None:
    made = tried(tmp_path / "s", losses(2.3, 2.2, 2.0, 1.5, 1.8, 2.4, None), status="running")
    assert not rates.courses(ranking.read(made))


def test_the_picture_is_in_the_report_and_in_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = tried(tmp_path / "s", losses(2.3, 2.2, 2.0, 1.5, 1.8, 9e9, None))
    report.write(made)
    report.show(made, Screen())
    events = EventAccumulator(str(made))
    events.Reload()
    assert "rates" in events.Tags()["images"] and "rates/text_summary" in events.Tags()["tensors"]
    page = (made / "report.html").read_text()
    assert '<img alt="rates"' in page and "Learning rates" in page
    with Image.open(made / "rates.png") as picture:
        assert picture.size[0] > 800
    assert "suggested range of freeze=none: optimizer.lr=1e-3,3e-3,1e-2,3e-2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_preset_runs_and_divergence_is_a_result_and_no_failure(tmp_path: Path) -> None:
    line = ["-m", "sweep=range_test", *TINY, "model=simple_cnn", "init_from=null", "dataset=shapes10", "steps=3",
            "freeze=none,head_only", "optimizer.lr=1e-3,1e-2,1e-1,1,1e30", "hydra.sweep.dir=s"]  # fmt: skip
    done = hydratune(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "suggested range of freeze=none: optimizer.lr=" in done.stdout and (tmp_path / "s" / "rates.png").is_file()
    found = rates.courses(ranking.read(tmp_path / "s"))
    assert [c.strategy for c in found] == ["head_only", "none"] and found[1].end is not None
    records = [RunRecord.read(p.parent) for p in (tmp_path / "s").glob("*/run.json")]
    assert any(r.nonfinite is not None for r in records)
    assert all(len(r.history) == 1 for r in records if r.status == "complete")
    failed = hydratune(*line, "sweep.may_diverge=false", cwd=tmp_path)
    assert failed.returncode == 2 and "is not finite" in failed.stderr
