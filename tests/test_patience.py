"""freeze.patience: phases that end early, go back to their best weights, and are the same however a run came there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.core.types import Phase
from hydratune.engine.trial import Trial
from hydratune.freeze import patience
from hydratune.freeze.phases import checked
from hydratune.freeze.report import trains
from hydratune.freeze.schedules import FreezeUnfreeze, Gradual, LpFt, Progressive
from hydratune.optim.optimizers import SGD, AdamW
from hydratune.record import checkpoint
from tests.test_phases import Fixed
from tests.tiny import go, network, same, stream, trial, weights

Runner = Callable[..., Any]

# ---- phases and what validation said


def phases(*lengths: int, patience: int | None = 2) -> list[Phase]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    made = [
        Phase(end - n, end, frozenset({"w"}), 0, f"p{i}", patience=patience)
        for i, (n, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    return [*made[:-1], replace(made[-1], patience=None)]


def spans(planned: Sequence[Phase], *values: float, every: int = 2) -> list[tuple[int, int]]:
    history = [[every * i, v] for i, v in enumerate(values, start=1)]
    return [(p.first_step, p.last_step) for p in patience.as_they_came(planned, history)]


def test_phases_give_their_steps_to_later_ones() -> None:
    planned = phases(10, 10, 10)
    assert spans(planned) == spans(planned, 0.1, 0.2, 0.3) == [(0, 10), (10, 20), (20, 30)]
    assert spans(planned, 0.1, 0.2, 0.3, 0.3) == [(0, 10), (10, 20), (20, 30)]  # one of two
    assert spans(planned, 0.2, 0.2, 0.2) == [(0, 6), (6, 16), (16, 30)]  # the last has what is left
    assert spans(planned, 0.1, 0.5, 0.4, 0.5) == [(0, 8), (8, 18), (18, 30)]
    # what the phase before was worth does not count, and neither does what is seen at its first step
    assert spans(planned, 0.2, 0.2, 0.2, 0.1, 0.15, 0.16) == [(0, 6), (6, 16), (16, 30)]
    assert spans(planned, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1) == [(0, 6), (6, 12), (12, 30)]
    # patience that is at an end just where the phase is
    assert spans(planned, 0.1, 0.2, 0.3, 0.3, 0.3) == [(0, 10), (10, 20), (20, 30)]
    assert patience.ran_out(planned[0], [[6, 0.3], [8, 0.3], [10, 0.3]]) == 10
    assert spans(planned, *[0.2] * 3, *[0.1] * 12) == [(0, 6), (6, 12), (12, 30)]  # the last one never ends so
    assert spans(phases(10, 10, patience=None), *[0.1] * 10) == [(0, 10), (10, 20)]


def test_what_is_not_a_number_is_no_better_and_anything_is_better_than_that() -> None:
    nan = float("nan")
    assert spans(phases(20, 10), 0.1, nan, nan) == [(0, 6), (6, 30)]
    assert spans(phases(20, 10), nan, 0.1, 0.2, nan) == [(0, 20), (20, 30)]
    assert patience.best_of(phases(20)[0], [[2, nan], [4, 0.1], [6, 0.1]]) == 4


def test_checkpoints_that_may_be_read_again() -> None:
    history = [[2, 0.3], [4, 0.2], [6, 0.2], [8, 0.1], [10, 0.2]]
    came = patience.as_they_came(phases(10, 10, 10), history)
    assert patience.bests(came, history, 2) == {2, 10} and patience.bests(came, history, 6) == {2, 10}
    assert patience.bests(came, history, 8) == {10}  # nobody goes back into the first phase from there
    assert not patience.bests(phases(10, 10, patience=None), history, 0)


def test_all_phases_but_the_last_have_it(tmp_path: Path) -> None:
    net = network()
    for strategy in (LpFt(patience=3), FreezeUnfreeze(patience=3), Gradual(patience=3), Progressive(patience=3)):
        *first, last = strategy.phases(net.groups, 40)
        assert first and all(p.patience == 3 for p in first) and last.patience is None, strategy
    assert [row[1] for row in trains(net.groups, LpFt(patience=3).phases(net.groups, 40))] == [
        "0-19, patience 3",
        "20-39",
    ]
    assert LpFt(0.1, patience=3).phases(net.groups, 2)[0].patience is None  # too short for a probe


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_what_is_no_patience_is_refused(value: Any) -> None:
    for kind in (LpFt, FreezeUnfreeze, Gradual, Progressive):
        with pytest.raises(ValueError, match=rf"freeze\.patience={value}: evaluations, at least 1"):
            kind(patience=value)


def test_a_last_phase_of_ones_own_with_patience_is_refused() -> None:
    groups = network().groups
    made = Gradual(patience=2).phases(groups, 30)
    with pytest.raises(ValueError, match=r"has patience and is the last; engine\.patience ends a run"):
        checked([*made[:-1], replace(made[-1], patience=2)], groups, 30)


# ---- a trial


def test_the_best_weights_come_back_and_the_proof_holds(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, Progressive([0.5], patience=2), steps=20, recipe=AdamW(0.01), ema=0.9)
    kept: dict[int, checkpoint.Snapshot] = {}
    for step, value in ((0, 0.5), (1, 0.4), (2, 0.3)):
        one_step(t, step)
        t.note(step + 1, {"accuracy": value})
        kept[step + 1] = checkpoint.load(t.run.save(step + 1, t.snapshot(step + 1)))
    assert [(p.first_step, p.last_step) for p in t.phases] == [(0, 3), (3, 20)]
    t.prepare(3)
    best, now = kept[1], t.snapshot(3)
    assert same(weights(net), dict(best.model)) and same(dict(now.ema), dict(best.ema))
    assert not same(weights(net), dict(kept[3].model))
    trained = t.phases[1].trainable  # what freezes has no state
    assert same(dict(now.optimizer), {k: v for k, v in best.optimizer.items() if k.rpartition("|")[0] in trained})
    t.leave()
    said = (tmp_path / "run" / "freeze.md").read_text()
    assert "phase 'all' ended after step 3, 3 of its 10 steps: no better accuracy in 2 evaluations" in said
    assert "'from middle' begins with the weights of step 1 (accuracy 0.5000)" in said


def test_the_proof_finds_what_moved_also_where_the_best_weights_come_back(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, LpFt(patience=1), steps=20)
    for step, value in ((0, 0.5), (1, 0.4)):
        one_step(t, step)
        t.note(step + 1, {"accuracy": value})
        t.run.save(step + 1, t.snapshot(step + 1))
    foreign = t.snapshot(1).model
    foreign = {n: w + (n == "stem.weight") for n, w in foreign.items()}
    checkpoint.save(t.run.checkpoints, 1, replace(t.snapshot(1), model=foreign))
    with pytest.raises(RuntimeError, match="phase probe: a frozen parameter or buffer changed"):
        t.prepare(2)


def one_step(t: Trial, step: int) -> None:
    batch = next(stream().batches(step, step + 1))
    t.step(step, batch.inputs, batch, 0)


def test_the_loop_does_what_one_would_by_hand(tmp_path: Path) -> None:
    """Train until patience is at an end, take the best weights up, and go on with the next phase at that step."""
    net, other, recipe = network(dropout=0.2), network(dropout=0.2), AdamW(0.02)
    strategy = LpFt(0.9, patience=2)
    t = trial(tmp_path, net, strategy, steps=40, recipe=recipe)
    go([t], every=2)
    probe, rest = t.phases
    best = patience.best_of(probe, t.state.history)
    assert best is not None and best + 4 == probe.last_step < 36 and rest.last_step == 40
    by_hand = trial(tmp_path, other, Fixed([replace(probe, patience=None), rest]), steps=40, recipe=recipe, name="hand")
    for step in range(best):
        one_step(by_hand, step)
    go([by_hand], first=probe.last_step)
    assert same(weights(net), weights(other))
    assert not torch.equal(weights(net)["stem.weight"], weights(network())["stem.weight"])


def test_engine_patience_counts_from_where_the_last_thaw_has_come(tmp_path: Path) -> None:
    t = trial(tmp_path, network(), LpFt(0.9, patience=2), steps=100, recipe=SGD(1e-12), patience=3)
    go([t], every=4)
    assert [(p.first_step, p.last_step) for p in t.phases] == [(0, 12), (12, 100)]
    assert t.state.stopped and t.state.history[-1][0] == 24  # since the thaw three times nothing better
