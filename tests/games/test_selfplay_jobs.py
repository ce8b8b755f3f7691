"""stage=selfplay as a run: the same bits whatever interrupts it, whoever plays, and whatever learns beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PATIENCE, hydratune, make_job

from hydratune.experiment import generation, selfplay
from hydratune.experiment.selfplay import run_job, run_jobs
from hydratune.record import checkpoint
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen

SMALL = [
    "stage=selfplay", "dataset/game=tictactoe", "model=board_resnet", "model.blocks=1", "model.width=8",
    "model.norm_groups=2", "init_from=null", "generations=3", "steps=4", "batch_size=16", "search.simulations=4",
    "dataset.play.games=12", "dataset.play.rows=4", "dataset.play.shard=4", "dataset.play.openings=2",
    "dataset.val_share=0.3", "runtime.precision=fp32", "runtime.layout=contiguous", "runtime.threads=1",
]  # fmt: skip


def generations(directory: Path) -> list[str]:
    found: list[str] = json.loads((directory / "generations.json").read_text())["generations"]
    return found


def hashes(directory: Path) -> dict[str, Any]:
    """Of what a run has made: its weights, and every game that it learned from."""
    record = RunRecord.read(directory)
    assert record.status == "complete"
    made = generations(directory)
    files = [json.loads((Path(d) / "manifest.json").read_text())["files"] for d in made]
    best = checkpoint.path_of(directory / "checkpoints", record.best_step)
    return {"weights": checkpoint.model_hash(best), "games": files, "steps": record.num_steps}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing interrupted."""
    home = tmp_path_factory.mktemp("whole")
    return hashes(run_job(make_job(SMALL, home), Screen(quiet=True)).directory)


def test_generations_follow_each_other(whole: dict[str, Any]) -> None:
    assert whole["steps"] == 12 and len(whole["games"]) == 3 and all(len(files) == 3 for files in whole["games"])
    assert len({tuple(files.values()) for files in whole["games"]}) == 3


class Killed(BaseException):
    """As a SIGKILL: no handler of Exception hears of it."""


def places() -> list[tuple[str, Any, str, int]]:
    """(what, module, function, which of its calls is the last one)"""
    return [
        ("playing the first shard", generation, "play_shard", 1),
        ("playing a later shard", generation, "play_shard", 5),
        ("publishing the first generation", generation, "_publish", 1),
        ("publishing the third one", generation, "_publish", 3),
        ("writing down which there are", selfplay, "write_json", 2),
        ("between play and training", selfplay, "_trained", 2),
    ]


@pytest.mark.parametrize(("what", "module", "name", "last"), places(), ids=[p[0].replace(" ", "_") for p in places()])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_dies_goes_on_as_if_it_had_not(
    what: str, module: Any, name: str, last: int, after: bool, whole: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """after: whether the last call is still made."""
    real, calls = getattr(module, name), [0]

    def deadly(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == last and not after:
            raise Killed
        result = real(*arguments, **more)
        if calls[0] == last:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, deadly)
        with pytest.raises(Killed):
            run_job(make_job(SMALL, tmp_path), Screen(quiet=True))
    result = run_job(make_job([*SMALL, "resume=auto"], tmp_path), Screen(quiet=True))
    assert hashes(result.directory) == whole


@pytest.mark.slow
def test_sigkill_while_two_processes_play_and_while_it_trains(tmp_path: Path) -> None:
    """The command itself, killed as soon as something of each kind is there; its workers end with it."""
    line = [*SMALL[:-1], "runtime.threads=2", "steps=40", "name=killed"]
    found = hydratune(*line, "name=whole", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    expected = hashes_in(tmp_path, "whole")
    events = ["generations/.partial-*/games-*", "generations/*/manifest.json", "selfplay/killed/checkpoints/step-*"]
    (tmp_path / "outputs" / "generations").rename(tmp_path / "generations-of-whole")
    for event in [*events, *events[:1]]:
        before = {*(tmp_path / "outputs").glob(event)}
        process = subprocess.Popen(
            [sys.executable, "-m", "hydratune", *line, "resume=auto"], cwd=tmp_path, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while process.poll() is None and {*(tmp_path / "outputs").glob(event)} <= before and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert hydratune(*line, "resume=auto", cwd=tmp_path).returncode == 0
    assert hashes_in(tmp_path, "killed") == expected
    assert not workers_in(tmp_path)


def hashes_in(home: Path, name: str) -> dict[str, Any]:
    before = Path.cwd()
    os.chdir(home)
    try:
        return hashes(Path("outputs") / "selfplay" / name)
    finally:
        os.chdir(before)


def workers_in(home: Path) -> list[str]:
    """Processes that play there; given a while to notice that nobody listens to them."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        alive = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    b"play_worker" in (process / "cmdline").read_bytes()
                    and (process / "cwd").resolve() == home.resolve()
                ):
                    alive.append(process.name)
        if not alive:
            return []
        time.sleep(0.05)
    return alive


@pytest.mark.slow
def test_two_processes_play_the_games_of_one(tmp_path: Path) -> None:
    one = run_job(make_job([*SMALL, "generations=1"], tmp_path / "one"), Screen(quiet=True))
    two = run_job(make_job([*SMALL[:-1], "runtime.threads=2", "generations=1"], tmp_path / "two"), Screen(quiet=True))
    assert hashes(one.directory)["games"] == hashes(two.directory)["games"]


def test_jobs_share_their_first_generation_and_learn_as_alone(tmp_path: Path) -> None:
    """Side by side, one with all of it trained and one with its head alone, for two generations."""
    jobs = []
    for strategy in ("none", "head_only"):
        line = [*SMALL, f"freeze={strategy}", "generations=2"]
        jobs.append(make_job(line, tmp_path / strategy, sweep=True).with_config(outputs=str(tmp_path / "outputs")))
    screen = Screen(quiet=True)
    outcomes = dict(run_jobs(jobs, screen, lambda _: screen))
    assert [type(o).__name__ for o in outcomes.values()] == ["Result", "Result"]
    first = {generations(job.directory)[0] for job in jobs}
    assert len(first) == 1
    for job, strategy in zip(jobs, ("none", "head_only"), strict=True):
        alone = make_job([*SMALL, f"freeze={strategy}", "generations=2"], tmp_path / f"alone-{strategy}", sweep=True)
        assert hashes(run_job(alone, screen).directory) == hashes(job.directory)


def test_a_cached_trunk_is_that_of_the_generation(tmp_path: Path) -> None:
    """Each generation has other positions: what was cached of the one before is not read again."""
    found = []
    for cache in ("memory", "off"):
        line = [*SMALL, "freeze=head_only", f"freeze.cache={cache}"]
        found.append(hashes(run_job(make_job(line, tmp_path / cache), Screen(quiet=True)).directory))
    assert found[0] == found[1]


def test_a_run_that_is_there_is_not_gone_on_with_unasked(tmp_path: Path) -> None:
    directory = run_job(make_job([*SMALL, "generations=2"], tmp_path), Screen(quiet=True)).directory
    with pytest.raises(ValueError, match="already holds a run"):
        run_job(make_job([*SMALL, "generations=3"], tmp_path), Screen(quiet=True))
    first = generations(directory)[0]
    shutil.rmtree(first)
    with pytest.raises(ValueError, match="has learned from .*, which is gone"):
        run_job(make_job([*SMALL, "generations=3", "resume=auto"], tmp_path), Screen(quiet=True))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole: dict[str, Any], tmp_path: Path) -> None:
    """And what is trained again is trained on the generations of those steps."""
    run_job(make_job([*SMALL, "generations=2", "engine.keep=2"], tmp_path), Screen(quiet=True))
    newest = checkpoint.path_of(tmp_path / "run" / "checkpoints", 8)
    (newest / "model.safetensors").write_bytes(b"damaged")
    again = run_job(make_job([*SMALL, "engine.keep=2", "resume=auto"], tmp_path), Screen(quiet=True))
    assert hashes(again.directory) == whole


def test_a_run_can_be_made_longer_and_is_the_longer_one(whole: dict[str, Any], tmp_path: Path) -> None:
    run_job(make_job([*SMALL, "generations=2"], tmp_path), Screen(quiet=True))
    longer = run_job(make_job([*SMALL, "generations=3", "resume=auto"], tmp_path), Screen(quiet=True))
    assert hashes(longer.directory) == whole
    for other, changed in (("steps=5", "steps: 4 -> 5"), ("search.simulations=5", "search.simulations: 4 -> 5")):
        with pytest.raises(ValueError, match=changed):
            run_job(make_job([*SMALL, other, "generations=4", "resume=auto"], tmp_path), Screen(quiet=True))
    assert len(generations(longer.directory)) == 3  # nothing was played before it was refused


def test_what_died_before_its_first_checkpoint_binds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed in the same directory plays games of its own."""

    def deadly(*arguments: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(selfplay, "_trained", deadly)
        with pytest.raises(Killed):
            run_job(make_job([*SMALL, "generations=1"], tmp_path), Screen(quiet=True))
    found = run_job(make_job([*SMALL, "generations=1", "seed=1"], tmp_path), Screen(quiet=True))
    alone = run_job(make_job([*SMALL, "generations=1", "seed=1"], tmp_path / "alone"), Screen(quiet=True))
    assert hashes(found.directory) == hashes(alone.directory)


def test_a_run_that_stops_for_lack_of_patience_ends(tmp_path: Path) -> None:
    """The rest of its generations is not played."""
    line = [*SMALL, "monitor=null", "engine.patience=1", "generations=9", "optimizer.lr=1e-9", "engine.eval_every=2"]
    result = run_job(make_job(line, tmp_path), Screen(quiet=True))
    assert result.record.status == "complete" and result.record.stopped and len(generations(result.directory)) < 9


def test_models_that_begin_with_the_same_tensors_play_games_of_their_own(tmp_path: Path) -> None:
    """The groups of GroupNorm are no tensor."""
    line = [*SMALL, "generations=1", f"outputs={tmp_path}/outputs"]
    one = run_job(make_job(line, tmp_path / "one"), Screen(quiet=True)).directory
    two = run_job(make_job([*line, "model.norm_groups=4"], tmp_path / "two"), Screen(quiet=True)).directory
    assert generations(one) != generations(two)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["steps=null"], "steps: stage=selfplay wants the steps of each generation"),
        (["engine.eval_every=3"], "engine.eval_every=3: must divide steps=4"),
        (["generations=0"], "generations=0: must be a whole number"),
        (["search.simulation=3"], "search.simulation"),
        (["dataset.play.games=0"], r"dataset\.play\.games=0: at least 1"),
        (["dry_run=true"], "dry_run=true: what stage=selfplay trains on is played first"),
        (["search.simulations=0"], "search.simulations=0: stage=selfplay wants one whole number"),
        (["dataset.play.precision=fp16"], r"dataset\.play\.precision=fp16: auto, fp32 or bf16"),
    ],
)
def test_what_cannot_be_is_refused(typed: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        run_job(make_job([*SMALL, *typed], tmp_path), Screen(quiet=True))
    assert not list(tmp_path.rglob("games-*"))


def test_data_that_no_games_are_made_into_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset=connect4: stage=selfplay makes its data; dataset=selfplay"):
        make_job(["stage=selfplay", "dataset=connect4", "init_from=null"], tmp_path)


@pytest.mark.slow
def test_a_sweep_over_strategies_learns_from_one_first_generation(tmp_path: Path) -> None:
    """The command: four jobs, one generation, a leaderboard; each job's weights those that it has alone."""
    line = [*SMALL, "generations=1", "freeze=none,head_only", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep"]
    found = hydratune("-m", *line, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len(list((tmp_path / "outputs" / "generations").glob("*/manifest.json"))) == 1
    records = [RunRecord.read(path.parent) for path in (tmp_path / "sweep").glob("*/run.json")]
    assert len(records) == 4 and {r.status for r in records} == {"complete"}
    one = next(r for r in records if "freeze=head_only" in r.overrides and "optimizer.lr=0.1" in r.overrides)
    alone = hydratune(*SMALL, "generations=1", "freeze=head_only", "optimizer.lr=0.1", "name=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert RunRecord.read(tmp_path / "outputs" / "selfplay" / "alone").checkpoint["sha256"] == one.checkpoint["sha256"]
    assert "[4/4]" in found.stdout and "wins" in found.stdout
