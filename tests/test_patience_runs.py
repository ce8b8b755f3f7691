"""Whole runs with freeze.patience: killed, halted, side by side, and what they say."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.distributed import signals
from hydratune.engine.stretch import Stretch
from hydratune.experiment.run import run_job, run_jobs
from hydratune.freeze import patience
from hydratune.record import checkpoint
from hydratune.record.run_record import RunRecord
from hydratune.record.screen import Screen
from tests.conftest import TINY, make_job
from tests.test_job import scalars
from tests.test_patience import phases
from tests.tiny import same

Runner = Callable[..., Any]
STEPS = 30
# A rate that is too high, so that validation goes up and down
LINE = [*TINY, "stage=finetune", "model=resnet9_w16", "init_from=null", "test=false", f"steps={STEPS}",
        "engine.eval_every=2", "optimizer=adamw", "optimizer.lr=0.03", "engine.ema=0.8",
        "dataset=shapes10"]  # fmt: skip
GRADUAL = [*LINE, "freeze=gradual", "freeze.patience=1", "freeze.steps_per_group=8"]


def end(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and state of the last checkpoint, but for clocks."""
    last = checkpoint.load(directory / "checkpoints" / f"step-{STEPS:08d}")
    parts = {"model": last.model, "optimizer": last.optimizer, "ema": last.ema}
    return {f"{part}|{n}": t for part, own in parts.items() for n, t in own.items()}, dict(last.state)


def alike(one: Path, other: Path) -> bool:
    (a, told), (b, said) = end(one), end(other)
    return same(a, b) and told == said and bests_alike(one, other)


def bests_alike(one: Path, other: Path) -> bool:
    step = RunRecord.read(one).best_step
    found = [checkpoint.load(home / "checkpoints" / f"step-{step:08d}").model for home in (one, other)]
    return same(*map(dict, found)) and RunRecord.read(other).best_step == step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four phases, three of which patience ends."""
    home = tmp_path_factory.mktemp("whole")
    return run_job(make_job(GRADUAL, home), Screen(quiet=True)).directory


def ended_by_patience(directory: Path) -> list[int]:
    came = patience.as_they_came(phases(8, 8, 8, 6, patience=1), RunRecord.read(directory).history)
    return [p.last_step for p in came[:-1]]


def test_patience_ends_phases_before_their_time_and_says_so(whole: Path) -> None:
    turns = ended_by_patience(whole)
    assert len(turns) == 3 and any(turn < plan for turn, plan in zip(turns, (8, 16, 24), strict=True))
    seen = dict(scalars(whole)["phase/index"])
    assert [seen[turn + 1] for turn in turns] == [1, 2, 3]  # the first update after it is the next one's
    texts = told(whole)["freeze/text_summary"]
    assert [step for step, _ in texts] == [0, *turns]
    for (_, text), number in zip(texts[1:], range(3), strict=True):
        assert "no better accuracy in 1 evaluation;" in text and text in (whole / "freeze.md").read_text(), number
    assert RunRecord.read(whole).frozen_unchanged


def told(directory: Path) -> dict[str, list[tuple[int, str]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    texts = [tag for tag in events.Tags()["tensors"] if tag.endswith("text_summary")]
    return {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)] for tag in texts}


def dying_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """As if the process were gone before these updates, one death after the other."""
    update, left = Stretch.update, list(steps)

    def dying(self: Stretch, step: int, *more: Any) -> None:
        if left and step == left[0]:
            raise KeyboardInterrupt(left.pop(0))
        update(self, step, *more)

    monkeypatch.setattr(Stretch, "update", dying)


# After the last evaluation of a phase, within one, at its first step, and where nothing was saved since
@pytest.mark.parametrize("save_every", [2, 5])
def test_a_run_that_is_killed_ends_with_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    dying_at(monkeypatch, 1, 3, 4, 5, 8, 9, 13, 14, 15, 29)
    job = make_job([*GRADUAL, "resume=auto", f"engine.save_every={save_every}"], tmp_path)
    kills = 0
    while True:
        try:
            home = run_job(job, Screen(quiet=True)).directory
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 10 and alike(whole, home)
    text = (home / "freeze.md").read_text()
    assert [text.count(f"ended after step {turn},") for turn in ended_by_patience(whole)] == [1, 1, 1]


def test_a_signal_before_the_evaluation_that_ends_a_phase(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation is owed, and made when the run goes on: the phase ends then."""
    turn, update = ended_by_patience(whole)[0], Stretch.update

    def asking(self: Stretch, step: int, *more: Any) -> None:
        update(self, step, *more)
        if step == turn - 1:
            signals._asked.append(signal.SIGTERM)

    job = make_job([*GRADUAL, "resume=auto"], tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(signals, "_asked", [])
        patched.setattr(Stretch, "update", asking)
        with pytest.raises(signals.Stopped):
            run_job(job, Screen(quiet=True))
    assert checkpoint.load(checkpoint.path_of(job.directory / "checkpoints", turn)).state["owed"]
    assert alike(whole, run_job(job, Screen(quiet=True)).directory)


LINES = {
    "gradual": GRADUAL,
    "lp_ft": [*LINE, "freeze=lp_ft", "freeze.patience=1"],
    "slower": [*GRADUAL[:-2], "freeze.patience=2", "freeze.steps_per_group=10"],
    "progressive": [*LINE, "freeze=progressive", "freeze.patience=1"],
    "head": [*LINE, "freeze=head_only", "freeze.patience=1"],  # it has none, in a sweep of others that have
}


@pytest.mark.parametrize(
    "names", [("gradual", "lp_ft"), pytest.param(("gradual", "slower", "progressive", "head"), marks=pytest.mark.slow)]
)
def test_jobs_side_by_side_are_what_each_is_alone(whole: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """One leaves the stretch that the others are in, and what is shared stays so."""
    jobs = [make_job(LINES[name], tmp_path / name, sweep=True) for name in names]
    for job, outcome in run_jobs(jobs, Screen(quiet=True), lambda _: Screen(quiet=True)):
        assert not isinstance(outcome, Exception), (job.directory, outcome)
    assert alike(whole, jobs[0].directory)
    for job, name in list(zip(jobs, names, strict=True))[1:]:
        typed = [o for o in LINES[name] if name != "head" or "patience" not in o]
        alone = run_job(make_job(typed, tmp_path / f"{name}_alone"), Screen(quiet=True)).directory
        assert alike(alone, job.directory), name


def test_a_job_that_halving_halts_where_a_phase_ends_goes_on_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    job = make_job([*GRADUAL, "resume=auto"], tmp_path, sweep=True)
    for turn in ended_by_patience(whole):
        ((_, outcome),) = run_jobs([replace(job, halt=turn / STEPS)], Screen(quiet=True), lambda _: Screen(quiet=True))
        assert not isinstance(outcome, Exception) and outcome.record.status == "paused"
    assert alike(whole, run_job(job, Screen(quiet=True)).directory)


def test_null_is_what_was_before(run: Runner, tmp_path: Path) -> None:
    more = [*LINE[len(TINY) :], "steps=6", "freeze=gradual"]
    plain, null = (run(*more, *o, directory=tmp_path / n) for n, o in (("a", []), ("b", ["freeze.patience=null"])))
    records = [RunRecord.read(r.directory) for r in (plain, null)]
    assert records[0].fingerprint == records[1].fingerprint
    assert "patience" not in json.dumps((records[0].provenance or {})["freeze"])
    state = json.loads((plain.directory / "checkpoints/step-00000006/state.json").read_text())
    assert not [key for key in state if "patience" in key or "phase" in key]


def test_one_phase_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"freeze\.patience=2: no such key of this strategy; it belongs to freeze="):
        make_job(["freeze=head_only", "freeze.patience=2"], tmp_path)


@pytest.mark.parametrize(("before", "after", "fits"), [(30, 32, True), (18, 30, False)])
def test_another_length_is_taken_where_what_is_done_would_have_been_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int, fits: bool
) -> None:
    """With 18 steps the third phase is the last one and has no patience; by the plan it would not have begun yet."""
    dying_at(monkeypatch, 14)
    with pytest.raises(KeyboardInterrupt):
        run_job(make_job([*GRADUAL, f"steps={before}"], tmp_path), Screen(quiet=True))
    job = make_job([*GRADUAL, f"steps={after}", "resume=auto"], tmp_path)
    if not fits:
        with pytest.raises(ValueError, match=r"freeze=gradual depends on how many steps there are"):
            run_job(job, Screen(quiet=True))
        return
    longer = run_job(make_job([*GRADUAL, f"steps={after}"], tmp_path / "whole"), Screen(quiet=True))
    assert bests_alike(longer.directory, run_job(job, Screen(quiet=True)).directory)
