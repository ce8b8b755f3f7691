"""Trials beside one another compute what each computes alone, and one's failure is not the others'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hydratune.data.images.augment import Augment
from hydratune.distributed.runtime import Precision, Runtime
from hydratune.engine.loop import advance, train
from hydratune.engine.nonfinite import NonFinite
from hydratune.engine.settings import Cadence
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.freeze.schedules import FreezeUnfreeze, Gradual, Lisa, LpFt, Progressive
from hydratune.freeze.strategies import HeadOnly, LastGroups, NoFreeze, NormOnly
from hydratune.models.network import Network
from hydratune.optim.optimizers import SGD, AdamW
from hydratune.optim.schedules import Cosine
from hydratune.record import checkpoint
from hydratune.record.feature_store import FeatureStore
from tests.test_job import scalars
from tests.tiny import Silent, network, same, stream, trial, weights

STRATEGIES: dict[str, Any] = {
    "none": NoFreeze(),
    "head_only": HeadOnly(),
    "last": LastGroups(1),
    "norm": NormOnly(),
    "lp_ft": LpFt(0.5),
    "unfreeze": FreezeUnfreeze(5),
    "gradual": Gradual(),
    "progressive": Progressive([0.3, 0.6]),
    "lisa": Lisa(1, 5, seed=2),
}


def forks(strategies: dict[str, Any], base: Network, steps: int) -> dict[str, Network]:
    """Networks that are the very same groups below all that each strategy ever changes."""
    lowest = {n: min(p.cut for p in s.phases(base.groups, steps)) for n, s in strategies.items()}
    return {n: base.fork(lowest[n]) for n in strategies}


def together(trials: dict[str, Trial], data: Any = None, caches: Caches | None = None, **more: Any) -> None:
    cadence = Cadence(4, 8, 3)
    done = advance(
        list(trials.values()), Streams(data or stream(), stream(), {}), cadence, Silent(), caches=caches, **more
    )  # type: ignore[arg-type]
    for t in done:
        t.run.__exit__(None, None, None)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("augment", [Augment(), Augment(flip=True, crop_padding=1)], ids=["plain", "augmented"])
def test_each_is_what_it_is_alone(tmp_path: Path, ema: float | None, augment: Augment) -> None:
    """Bit for bit, weights, averages, evaluations and what TensorBoard holds, with dropout, momentum and twins."""
    data, nets = stream(augment=augment), forks(STRATEGIES, network(dropout=0.2), 12)
    beside = {n: trial(tmp_path, nets[n], s, name=f"beside-{n}", ema=ema, clip=1.0) for n, s in STRATEGIES.items()}
    together(beside, data)
    for name, strategy in STRATEGIES.items():
        alone = trial(tmp_path, network(dropout=0.2), strategy, name=f"alone-{name}", ema=ema, clip=1.0)
        together({name: alone}, data)
        assert same(weights(alone.network), weights(beside[name].network)), name
        assert same(alone.ema, beside[name].ema) and alone.state.history == beside[name].state.history, name
        assert len(alone.state.history) == 3
        seen, wanted = (scalars(tmp_path / f"{where}-{name}") for where in ("beside", "alone"))
        timed = ("time/", "speed/", "memory/")
        assert {k: v for k, v in seen.items() if not k.startswith(timed)} == {
            k: v for k, v in wanted.items() if not k.startswith(timed)
        }, name
        assert seen.keys() == wanted.keys(), name


def test_a_cached_trunk_serves_those_above_it_only(tmp_path: Path) -> None:
    strategies = {n: STRATEGIES[n] for n in ("none", "head_only", "last", "lp_ft")}
    nets = forks(strategies, network(), 15)
    beside = {n: trial(tmp_path, nets[n], s, steps=15, name=f"beside-{n}") for n, s in strategies.items()}
    phases = frozenset(p for t in beside.values() for p in t.phases if p.cut)
    store = FeatureStore("memory", 2**30, tmp_path / "features")
    together(beside, caches=Caches(phases, store, str(tmp_path), str(tmp_path) + "val"))
    for name, strategy in strategies.items():
        alone = trial(tmp_path, network(), strategy, steps=15, name=f"alone-{name}")
        together({name: alone})
        assert same(weights(alone.network), weights(beside[name].network)), name


def test_the_trunk_runs_once_for_all(tmp_path: Path) -> None:
    base, rows = network(), []
    base.groups[0].module.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    nets = {n: base.fork(2) for n in "abc"}
    beside = {
        n: trial(tmp_path, net, HeadOnly(), recipe=SGD(0.1 * (i + 1)), name=n)
        for i, (n, net) in enumerate(nets.items())
    }
    together(beside)
    assert sum(rows) == 12 * 8 + 3 * 40  # twelve batches of eight, and three evaluations of forty


def test_a_probe_is_trained_once(tmp_path: Path) -> None:
    """LP-FT at any rate, its probe at 0.05, and head_only at 0.05: one of them steps, two look on."""
    strategies = {"a": LpFt(0.5, probe_lr=0.05), "b": LpFt(0.5, probe_lr=0.05), "head": HeadOnly()}
    recipes = {"a": AdamW(0.01), "b": AdamW(0.003), "head": AdamW(0.05)}
    nets, steps = forks(strategies, network(), 12), dict.fromkeys(strategies, 0)

    class Counted(Trial):
        def step(self, step: int, *arguments: Any) -> None:
            steps[self.run.directory.name.partition("-")[2]] += 1
            super().step(step, *arguments)

    def make(name: str, net: Network, where: str) -> Trial:
        made = trial(tmp_path, net, strategies[name], name=f"{where}-{name}", recipe=recipes[name], schedule=Cosine())
        made.__class__ = Counted
        return made

    beside = {n: make(n, nets[n], "beside") for n in strategies}
    together(beside)
    # One probe for all three, then each its own half
    assert steps == {"a": 6 + 6, "b": 6, "head": 6}
    for name in strategies:
        alone = make(name, network(), "alone")
        together({name: alone})
        assert same(weights(alone.network), weights(beside[name].network)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recipe", [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(0.01)], ids=["sgd", "adamw"])
def test_stacked_heads_are_each_what_it_is_alone(tmp_path: Path, recipe: Any, dtype: torch.dtype) -> None:
    """One product for all, a rate for each, two hundred steps: bit for bit."""
    import copy

    def at(rate: float) -> Any:
        changed = copy.copy(recipe)
        changed.lr = rate
        return changed

    rates = {"a": 0.01, "b": 0.03, "c": 0.1, "d": 1e30}
    base, stepped = network(), []
    nets = {n: base.fork(2) for n in rates}

    class Counted(Trial):
        def step(self, *arguments: Any) -> None:
            stepped.append(self)
            super().step(*arguments)

    runtime = Runtime(precision="fp32", keep_memory=False).choose(Precision(dtype))
    options: Any = {"steps": 200, "ema": 0.9, "clip": 1.0, "runtime": runtime}
    beside = {
        n: trial(tmp_path, nets[n], HeadOnly(), recipe=at(r), name=f"beside-{n}", **options) for n, r in rates.items()
    }
    for t in beside.values():
        t.__class__ = Counted
    together(beside)
    assert beside["d"].failed or not stepped  # the one that fails is taken out, the others stay one product
    assert len(stepped) == 0
    for name in "abc":
        alone = trial(tmp_path, network(), HeadOnly(), recipe=at(rates[name]), name=f"alone-{name}", **options)
        together({name: alone})
        assert same(weights(alone.network), weights(nets[name])) and same(alone.ema, beside[name].ema)
        assert alone.state.history == beside[name].state.history


def test_other_rates_are_no_twins(tmp_path: Path) -> None:
    nets = forks(dict.fromkeys("ab", HeadOnly()), network(), 12)
    beside = {n: trial(tmp_path, nets[n], HeadOnly(), recipe=SGD(r), name=n) for n, r in (("a", 0.1), ("b", 0.1001))}
    together(beside)
    assert not same(weights(nets["a"]), weights(nets["b"]))


@pytest.mark.parametrize("when", [1, 7, 12])
def test_a_failure_takes_one_out(tmp_path: Path, when: int) -> None:
    strategies = {n: STRATEGIES[n] for n in ("none", "last", "lp_ft")}
    nets = forks(strategies, network(), 12)
    beside = {n: trial(tmp_path, nets[n], s, name=f"beside-{n}") for n, s in strategies.items()}

    class Failing(Trial):
        def step(self, step: int, *arguments: Any) -> None:
            if step == when - 1:
                raise NonFinite("as asked")
            super().step(step, *arguments)

    beside["last"].__class__ = Failing
    done = []
    for t in advance(list(beside.values()), Streams(stream(), stream(), {}), Cadence(4, 4, 3), Silent()):  # type: ignore[arg-type]
        done.append(t)
        t.run.__exit__(None, None, None)
    assert isinstance(beside["last"].failed, NonFinite) and len(done) == 3
    assert (done[0] is beside["last"]) == (when < 12)
    for name in ("none", "lp_ft"):
        alone = trial(tmp_path, network(), strategies[name], name=f"alone-{name}")
        together({name: alone})
        assert same(weights(alone.network), weights(nets[name])), name


def test_halting_and_going_on_is_the_same_run(tmp_path: Path) -> None:
    """At steps where all are evaluated anyhow; each goes on from its checkpoint."""
    nets = forks(STRATEGIES, network(dropout=0.2), 12)
    first = {n: trial(tmp_path, nets[n], s, name=n) for n, s in STRATEGIES.items()}
    together(first, until=dict.fromkeys(first.values(), 4))
    assert all(len(t.state.history) == 1 for t in first.values())
    nets = forks(STRATEGIES, network(dropout=0.2), 12)
    again = {n: trial(tmp_path, nets[n], s, name=n) for n, s in STRATEGIES.items()}
    for name, t in again.items():
        newest, _ = checkpoint.newest_valid(tmp_path / name / "checkpoints")
        assert newest is not None and t.restore(checkpoint.load(newest)) == 4
    together(again, first_step=4)
    for name, strategy in STRATEGIES.items():
        alone = trial(tmp_path, network(dropout=0.2), strategy, name=f"alone-{name}")
        together({name: alone})
        assert same(weights(alone.network), weights(again[name].network)), name
        assert alone.state.history == again[name].state.history and alone.state.best == again[name].state.best


def test_different_lengths_and_stopping_early(tmp_path: Path) -> None:
    base = network()
    nets = {n: base.fork(0) for n in "abc"}
    beside = {
        "a": trial(tmp_path, nets["a"], NoFreeze(), steps=12, name="a"),
        "b": trial(tmp_path, nets["b"], NoFreeze(), steps=7, name="b"),
        "c": trial(tmp_path, nets["c"], HeadOnly(), steps=40, recipe=SGD(1e-9), name="c", patience=2),
    }
    together(beside)
    assert beside["c"].state.stopped and [h[0] for h in beside["b"].state.history] == [4, 7]
    assert checkpoint.steps(tmp_path / "b" / "checkpoints")[-1] == 7
    alone = trial(tmp_path, network(), NoFreeze(), steps=7, name="alone")
    together({"alone": alone})
    assert same(weights(alone.network), weights(nets["b"]))
    assert torch.equal(nets["c"].parameters()["stem.weight"], network().parameters()["stem.weight"])


def test_the_line_of_several_says_that_its_metric_is_the_best_of_them(tmp_path: Path) -> None:
    shown: list[dict[str, str]] = []

    class Line(Silent):
        def milestone(self, step: int, seen: Any) -> None:
            shown.append(dict(seen))

    base = network()
    several = [trial(tmp_path, base.fork(0), recipe=SGD(rate), name=f"{rate}") for rate in (1e-9, 0.05)]
    train(several, Streams(stream(), stream(), {}), Cadence(4, 4, 4), Line(), 0)  # type: ignore[arg-type]
    assert shown[-1]["best val accuracy"] == f"{max(t.state.last['accuracy'] for t in several):.4f}"
    train([trial(tmp_path, network(), name="alone")], Streams(stream(), stream(), {}), Cadence(4, 4, 4), Line(), 0)  # type: ignore[arg-type]
    assert shown[-1].keys() >= {"val accuracy", "loss"}
