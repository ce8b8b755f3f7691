"""LISA: what is drawn, that only that moves, that all of it does, and that resuming changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hydratune.core.layer_groups import parameter_names
from hydratune.core.seeding import derive_seed
from hydratune.core.types import Backbone, Phase
from hydratune.engine.trial import Trial
from hydratune.freeze.phases import last_thaw
from hydratune.freeze.report import trains
from hydratune.freeze.schedules import Gradual, Lisa, LpFt, Progressive
from hydratune.models.network import Network, build_network
from hydratune.optim.optimizers import SGD, AdamW, OptimizerConfig
from hydratune.record import checkpoint
from tests.tiny import go, same, stream, trial, weights

BLOCKS = 6
LISA = Lisa(groups=2, interval=3, seed=5)


def deep() -> Network:
    """A stem, six blocks and a head; a flattening group without parameters lies between."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Module()
        source.stem = nn.Conv2d(3, 4, 3, stride=2)
        source.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(BLOCKS))
        groups = [("stem", source.stem), *((f"block{i}", b) for i, b in enumerate(source.blocks))]
        return build_network(Backbone(source, [*groups, ("flat", nn.Flatten())]), nn.Linear(36, 3))


def drawn(phase: Phase, net: Network) -> list[str]:
    """Names of the groups between that train, all of each or none."""
    between = list(zip(net.groups, parameter_names(net.groups), strict=True))[1:-1]
    for _, names in between:
        assert not names or phase.trainable.issuperset(names) or phase.trainable.isdisjoint(names)
    return [g.name for g, names in between if names and phase.trainable.issuperset(names)]


def test_the_draw_is_a_function_of_seed_and_interval() -> None:
    net, steps = deep(), 60
    phases = LISA.phases(net.groups, steps)
    assert phases == LISA.phases(net.groups, steps)
    assert [p.first_step for p in phases] == list(range(0, steps, 3))
    ends = {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    assert all(p.trainable >= ends and p.cut == 0 and len(drawn(p, net)) == 2 for p in phases)
    draws = [tuple(drawn(p, net)) for p in phases]
    assert [p.name for p in phases] == [", ".join(d) for d in draws]
    assert {name for d in draws for name in d} == {f"block{i}" for i in range(BLOCKS)} and len(set(draws)) > 6
    # what is drawn in an interval depends neither on the length of the run nor on that of the interval
    assert [p.trainable for p in LISA.phases(net.groups, 30)] == [p.trainable for p in phases[:10]]
    assert [tuple(drawn(p, net)) for p in Lisa(2, 5, seed=5).phases(net.groups, steps)] == draws[:12]
    assert [tuple(drawn(p, net)) for p in Lisa(2, 3, seed=6).phases(net.groups, steps)] != draws
    assert len(Lisa(0.5, 0.25).phases(net.groups, steps)) == 4
    assert len(drawn(Lisa(0.5).phases(net.groups, steps)[0], net)) == 3
    assert len(drawn(Lisa(99).phases(net.groups, steps)[0], net)) == BLOCKS
    assert [p.last_step for p in Lisa(1, 7).phases(net.groups, 10)] == [7, 10]


def test_draws_are_even() -> None:
    net = deep()
    counts = dict.fromkeys((g.name for g in net.groups), 0)
    for phase in Lisa(2, 1, seed=1).phases(net.groups, 3000):
        for name in drawn(phase, net):
            counts[name] += 1
    assert all(900 < counts[f"block{i}"] < 1100 for i in range(BLOCKS)), counts


@pytest.mark.parametrize("recipe", [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(0.01)], ids=["sgd", "adamw"])
def test_in_every_interval_just_what_was_drawn_moves(tmp_path: Path, recipe: OptimizerConfig) -> None:
    """Elsewhere layers that are drawn later are missing from the optimizer (LMFlow#726, ms-swift#10140)."""
    net, steps = deep(), 30
    t = trial(tmp_path, net, LISA, steps=steps, recipe=recipe)
    batches = list(stream().batches(0, steps))
    for phase in t.phases:
        before = weights(net)
        for step in range(phase.first_step, phase.last_step):
            t.step(step, batches[step].inputs, batches[step], 0)
        moved = {n for n, w in weights(net).items() if not torch.equal(w, before[n])}
        assert moved == phase.trainable
        # state of what froze is gone: it takes no memory
        assert {n for n, p in net.parameters().items() if t.optimizer.state.get(p)} == phase.trainable
    t.leave()
    assert frozenset().union(*(p.trainable for p in t.phases)) == net.parameters().keys()


def test_the_proof_finds_what_moved_though_it_was_not_drawn(tmp_path: Path) -> None:
    net = deep()
    t = trial(tmp_path, net, LISA)
    batches = list(stream().batches(0, 4))
    for step in range(3):
        t.step(step, batches[step].inputs, batches[step], 0)
    frozen = next(n for n in net.parameters() if n not in t.phases[0].trainable)
    with torch.no_grad():
        net.parameters()[frozen].view(-1)[0] += 1e-7
    with pytest.raises(RuntimeError, match="a frozen parameter or buffer changed"):
        t.step(3, batches[3].inputs, batches[3], 0)


@pytest.mark.parametrize("at", [2, 3, 4, 9])
def test_resuming_is_exact_within_an_interval_and_between_two(tmp_path: Path, at: int) -> None:
    def made(name: str) -> tuple[Network, Trial]:
        net = deep()
        return net, trial(tmp_path, net, LISA, recipe=AdamW(0.01), ema=0.9, name=name)

    (whole, t), (_, u), (rest, v) = made("whole"), made("first"), made("second")
    go([t])
    for step, batch in enumerate(stream().batches(0, at)):
        u.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "saved", at, u.snapshot(at)))
    go([v], first=v.restore(saved))
    assert same(weights(whole), weights(rest)) and same(t.ema, v.ema)


def test_patience_counts_over_intervals_once_everything_has_had_its_turn(tmp_path: Path) -> None:
    net = deep()
    turns = Lisa(groups=5, interval=4, seed=1)
    phases = turns.phases(net.groups, 200)
    settled = last_thaw(phases)
    assert 0 < settled <= 12
    t = trial(tmp_path, net, turns, steps=200, recipe=SGD(1e-12), patience=3)
    go([t], every=5)
    assert t.state.stopped and t.state.history[-1][0] < settled + 25


def test_where_nothing_new_thaws_any_more() -> None:
    net = deep()
    for strategy, step in ((Gradual(5), 40), (LpFt(0.25), 15), (Progressive(), 0), (Lisa(9, 10), 0)):
        assert last_thaw(strategy.phases(net.groups, 60)) == step, strategy


def test_the_table_names_groups_with_gaps_between_them() -> None:
    net = deep()
    owned = parameter_names(net.groups)
    chosen = [name for i in (0, 1, 2, 3, 4, 6, 8) for name in owned[i]]
    phase = Phase(0, 5, frozenset(chosen), 0, "some")
    (row,) = trains(net.groups, [phase])
    assert row[2] == "stem to block3, block5, head" and row[6] == "runs through all, through frozen block4"
    (row,) = trains(net.groups, [Phase(0, 5, frozenset(chosen) - {"stem.bias"}, 0, "some")])
    assert row[2] == "stem (in part) to block3, block5, head"


def test_a_job_draws_with_its_own_seed_and_shows_a_few_phases(
    run: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = ["stage=finetune", "model=resnet9_w16", "init_from=null", "freeze=lisa", "freeze.groups=1", "test=false"]
    done = run(*lines, "freeze.interval=1", "steps=14", "seed=3", "engine.eval_every=14")
    record = json.loads((done.directory / "run.json").read_text())
    assert record["provenance"]["freeze"]["seed"] == 3 and record["frozen_unchanged"]
    assert "what trains; 2 more phases in freeze.md" in " ".join(capfd.readouterr().out.split())
    assert (done.directory / "freeze.md").read_text().count("stem") >= 14
    final = next(Path(done.directory).glob("checkpoints/*14/optimizer.safetensors"))
    from safetensors import safe_open

    with safe_open(final, "pt") as tensors:
        kept = {name.rpartition("|")[0] for name in tensors.keys()}  # noqa: SIM118
    last = min(("layer1", "layer2", "layer3"), key=lambda name: derive_seed(3, "lisa", 13, name))
    assert {n.split(".")[0] for n in kept} == {"stem", last, "fc"}
