"""Strategies and phases over random networks, steps, accumulation and resume points."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import Backbone, Phase
from hydratune.freeze.lora import LoRA
from hydratune.freeze.phases import with_norms
from hydratune.freeze.schedules import FreezeUnfreeze, Gradual, Lisa, LpFt, Progressive
from hydratune.freeze.strategies import (
    BiasOnly,
    FirstGroups,
    HeadOnly,
    LastGroups,
    NoFreeze,
    NormOnly,
    Pattern,
    Surgical,
)
from hydratune.models.network import Network, build_network
from hydratune.models.vision.simple_cnn import simple_cnn
from hydratune.optim.optimizers import SGD, AdamW
from tests.tiny import network, same, stream, trial, weights

SHARES = st.floats(0.0, 1.0)
STRATEGIES = st.one_of(
    st.builds(NoFreeze),
    st.builds(HeadOnly),
    st.builds(LastGroups, st.one_of(st.integers(0, 5), SHARES)),
    st.builds(FirstGroups, st.one_of(st.integers(0, 5), SHARES)),
    st.builds(Surgical, st.integers(0, 1)),
    st.builds(BiasOnly),
    st.builds(NormOnly),
    st.builds(Pattern, st.just(["head", "group0"])),
    st.builds(LpFt, st.floats(0.05, 0.95)),
    st.builds(FreezeUnfreeze, st.one_of(st.integers(0, 30), SHARES)),
    st.builds(Gradual, st.one_of(st.none(), st.integers(1, 9), st.floats(0.05, 1.0))),
    st.builds(Progressive, st.lists(SHARES, min_size=1, max_size=4).map(sorted)),
    st.builds(Lisa, st.integers(1, 2), st.one_of(st.integers(1, 9), st.floats(0.05, 1.0)), st.integers(0, 99)),
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Two to four groups of convolutions, with or without BatchNorm, GroupNorm and dropout."""
    count = draw(st.integers(1, 3))
    source = nn.Module()
    groups: list[tuple[str, nn.Module]] = []
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        for i in range(count):
            layers: list[nn.Module] = [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1)]
            kind = draw(st.sampled_from(["none", "batch", "group"]))
            layers += {"none": [], "batch": [nn.BatchNorm2d(4)], "group": [nn.GroupNorm(2, 4)]}[kind]
            layers += [nn.Tanh(), nn.Dropout(draw(st.sampled_from([0.0, 0.2])))]
            if i == count - 1:
                layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
            module = nn.Sequential(*layers)
            source.add_module(f"group{i}", module)
            groups.append((f"group{i}", module))
        return build_network(Backbone(source, groups), nn.Linear(16, 3))


class Fixed:
    """Phases that were made already."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self._phases = list(phases)

    def phases(self, groups: Any, num_steps: int) -> list[Phase]:
        return self._phases


@settings(max_examples=60, deadline=None)
@given(networks(), STRATEGIES, st.integers(1, 40), st.sampled_from(["frozen", "statistics", "affine"]))
def test_phases_tile_the_steps_and_name_what_exists(net: Network, strategy: Any, steps: int, norm: str) -> None:
    phases = with_norms(strategy.phases(net.groups, steps), net.groups, norm)
    assert phases == with_norms(strategy.phases(net.groups, steps), net.groups, norm)  # pure
    assert phases[0].first_step == 0 and phases[-1].last_step == steps
    assert all(a.last_step == b.first_step for a, b in pairwise(phases))
    owned = parameter_names(net.groups)
    for phase in phases:
        assert phase.first_step < phase.last_step and phase.trainable <= set(net.parameters())
        assert set(owned[-1]) <= phase.trainable or isinstance(strategy, Pattern)  # the head always trains
        assert all(phase.trainable.isdisjoint(names) for names in owned[: phase.cut])


@settings(max_examples=25, deadline=None)
@given(
    networks(), STRATEGIES, st.integers(2, 7), st.integers(1, 3), st.integers(1, 6),
    st.sampled_from(["frozen", "statistics", "affine"]), st.booleans(),
)  # fmt: skip
def test_what_is_frozen_stands_still_what_trains_moves_and_resuming_changes_nothing(
    net: Network, strategy: Any, steps: int, accumulate: int, at: int, norm: str, adam: bool
) -> None:
    fixed = Fixed(with_norms(strategy.phases(net.groups, steps), net.groups, norm))
    recipe = AdamW(0.01, weight_decay=0.1) if adam else SGD(0.1, momentum=0.9, weight_decay=0.1)
    more: dict[str, Any] = {"steps": steps, "recipe": recipe, "accumulate": accumulate}
    other = net.fork(0)
    batches = list(stream().batches(0, steps))
    with tempfile.TemporaryDirectory() as home:
        t = trial(Path(home), net, fixed, name="whole", **more)
        snapshot = None
        at = min(at, steps - 1)
        for step, batch in enumerate(batches):
            phase = t.phase_at(step)
            if step == at:
                snapshot = t.snapshot(step)
                snapshot = type(snapshot)(
                    *({k: v.clone() for k, v in part.items()} for part in (snapshot.model, snapshot.optimizer)),
                    state=snapshot.state,
                )
            before = weights(net)
            t.step(step, batch.inputs, batch, 0)
            after = weights(net)
            moved = {n for n in before if not torch.equal(before[n], after[n])}
            for n in set(net.parameters()) - phase.trainable:
                assert n not in moved
            # A bias before BatchNorm has no gradient but rounding; every weight has one.
            assert {n for n in phase.trainable if net.parameters()[n].ndim > 1} <= moved
            if norm == "frozen":
                still = {g.names[k] for g in net.groups[: phase.cut] for k, _ in g.module.named_buffers()}
                assert not still & moved
            assert {n for n, p in net.parameters().items() if t.optimizer.state.get(p)} == phase.trainable
        t.leave()
        u = trial(Path(home), other, fixed, name="resumed", **more)
        assert snapshot is not None
        first = u.restore(snapshot)
        for step in range(first, steps):
            u.step(step, batches[step].inputs, batches[step], 0)
        for one in (t, u):
            one.run.__exit__(None, None, None)
        assert same(weights(net), weights(other))


def names(strategy: Any, net: Network | None = None, steps: int = 12) -> list[tuple[str, int, int, int]]:
    net = net or network()
    return [(p.name, p.first_step, p.last_step, p.cut) for p in strategy.phases(net.groups, steps)]


def test_the_plans() -> None:
    assert names(LastGroups(0.5)) == [("last 1 groups", 0, 12, 1)]
    assert names(FirstGroups(1)) == [("all but the first 1 groups", 0, 12, 1)]
    assert names(Surgical("stem")) == [("stem and head", 0, 12, 0)]
    assert names(Surgical("stem", "middle")) == [("stem to middle and head", 0, 12, 0)]
    assert names(LpFt(0.25)) == [("probe", 0, 3, 2), ("all", 3, 12, 0)]
    assert names(FreezeUnfreeze(5)) == [("head", 0, 5, 2), ("all", 5, 12, 0)]
    assert names(Gradual()) == [("head", 0, 4, 2), ("from middle", 4, 8, 1), ("from stem", 8, 12, 0)]
    assert names(Gradual(2))[-1] == ("from stem", 4, 12, 0)
    assert names(Progressive([0.25, 0.5])) == [("all", 0, 3, 0), ("from middle", 3, 6, 1), ("from head", 6, 12, 2)]
    # A run too short for all phases leaves some out.
    assert names(Gradual(5), steps=4) == [("head", 0, 4, 2)]


def test_small_networks_have_degenerate_cases_and_say_so() -> None:
    net = build_network(simple_cnn(), nn.Linear(32 * 32 * 32, 3))
    assert names(NormOnly(), net) == [("head (this network has no norms below it)", 0, 12, 1)]
    assert names(BiasOnly(), net) == [("biases and head", 0, 12, 0)]
    assert [n[0] for n in names(Gradual(), net)] == ["head", "from conv1"]
    assert [n[0] for n in names(Progressive(), net)] == ["all", "from head"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Surgical("stm").phases(network().groups, 5), r"freeze.first=stm: no such group; nearest: stem"),
        (lambda: Surgical(7).phases(network().groups, 5), "freeze.first=7: no such group; 0 to 2"),
        (lambda: Surgical("middle", "stem").phases(network().groups, 5), "comes before"),
        (lambda: LastGroups(1.5), "share of them between"),
        (lambda: FirstGroups(-1), "a number of groups"),
        (lambda: LpFt(1.0), "freeze.fraction=1.0"),
        (lambda: LpFt(0.5, probe_lr=0.0), "freeze.probe_lr"),
        (lambda: FreezeUnfreeze(-2), "freeze.step=-2"),
        (lambda: FreezeUnfreeze(2, lr_scale=0), "freeze.lr_scale=0"),
        (lambda: Gradual(0), "at least one step"),
        (lambda: Progressive([0.5, 0.2]), "ascending"),
        (lambda: Lisa(groups=0), "freeze.groups=0"),
        (lambda: Lisa(interval=0), "freeze.interval=0"),
        (lambda: Lisa(interval=1.5), "freeze.interval=1.5"),
        (lambda: LoRA(rank=0), "freeze.rank=0"),
        (lambda: LoRA(alpha=0), "freeze.alpha=0"),
    ],
)
def test_wrong_values_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
