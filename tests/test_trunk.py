"""What frozen parts cost, and the cache of their outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import Phase
from hydratune.data.images.augment import Augment
from hydratune.distributed.runtime import Runtime
from hydratune.engine.loop import train
from hydratune.engine.settings import Cadence
from hydratune.engine.stretch import Streams
from hydratune.engine.trunk import Caches, Trunk, cached, plan_caches
from hydratune.freeze.cost import CostMeter, PhaseCost
from hydratune.freeze.phases import set_mode
from hydratune.freeze.schedules import Gradual, LpFt, Progressive
from hydratune.freeze.strategies import BiasOnly, HeadOnly, LastGroups, NoFreeze, Surgical
from hydratune.record.feature_store import _MEMORY, FeatureStore
from tests.tiny import Silent, network, same, stream, trial, weights

FP32 = Runtime(precision="fp32", keep_memory=False)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    _MEMORY.clear()


def meter(net: Any) -> CostMeter:
    inputs = next(stream(16).eval_batches()).inputs
    return CostMeter(net.groups, inputs, lambda o: o.square().sum(), FP32.autocast, update=1e-9)


# ---- what it costs


@pytest.mark.parametrize(
    "strategy", [NoFreeze(), HeadOnly(), LastGroups(1), BiasOnly(), Surgical(0)], ids=lambda s: type(s).__name__
)
def test_saved_bytes_are_what_autograd_keeps(strategy: Any) -> None:
    """Counted by hooks on the real, whole step."""
    net = network(norm=True)
    (phase,) = strategy.phases(net.groups, 1)
    inputs = next(stream(16).eval_batches()).inputs
    estimated = meter(net).phase(phase).saved_bytes
    for i, (group, names) in enumerate(zip(net.groups, parameter_names(net.groups), strict=True)):
        set_mode(group, names, phase, i >= phase.cut)
    for name, parameter in net.parameters().items():
        parameter.requires_grad_(name in phase.trainable)
    own = {p.untyped_storage().data_ptr() for p in net.parameters().values()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        with torch.no_grad():
            features = net.forward(inputs, 0, phase.cut)
        net.forward(features, phase.cut).square().sum().backward()
    assert sum(kept.values()) / 16 == pytest.approx(estimated, rel=0.01)


def test_operations_are_counted_and_shares_add_up() -> None:
    net = network()
    found = meter(net)
    with FlopCounterMode(display=False) as counter:
        net.forward(next(stream(1).eval_batches()).inputs[:1])
    assert sum(found.operations) == counter.get_total_flops() > 0
    cost = found.phase(LastGroups(1).phases(net.groups, 1)[0])
    stem = 2 * 6 * 3 * 9 * 36  # 2 x channels out x channels in x kernel x places
    assert cost.trunk_operations == pytest.approx(stem / sum(found.operations))
    assert 0 < cost.trunk_share < 1


def test_measuring_moves_nothing_and_freezing_costs_less() -> None:
    torch.manual_seed(0)
    net = network(dropout=0.5)
    before = weights(net)
    flags = {n: p.requires_grad for n, p in net.parameters().items()}
    found = meter(net)
    costs = [found.phase(p) for p in (NoFreeze().phases(net.groups, 1)[0], HeadOnly().phases(net.groups, 1)[0])]
    assert same(before, weights(net)) and flags == {n: p.requires_grad for n, p in net.parameters().items()}
    assert not any(p.grad is not None for p in net.parameters().values())
    assert costs[1].seconds < costs[0].seconds and costs[1].saved_bytes < costs[0].saved_bytes


def test_the_unfrozen_step_is_never_run() -> None:
    """It may not fit: at no time are all the activations of a full step there."""
    net = network()
    largest = 0
    alive = 0

    class Counting(CostMeter):
        def _saved_bytes(self, i: int, phase: Phase, below: bool) -> tuple[float, float, float]:
            nonlocal largest, alive
            alive += 1
            largest = max(largest, alive)
            result = super()._saved_bytes(i, phase, below)
            alive -= 1
            return result

    ran: list[int] = []
    groups = list(net.groups)

    class Watched(nn.Module):
        def __init__(self, inner: nn.Module, index: int) -> None:
            super().__init__()
            self.inner, self.index = inner, index

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                ran.append(self.index)
                assert x.grad_fn is None or "Clone" in type(x.grad_fn).__name__  # not the output of another group
            return self.inner(x)

    watched = [
        replace(g, module=Watched(g.module, i), names={f"inner.{k}": v for k, v in g.names.items()})
        for i, g in enumerate(groups)
    ]
    found = Counting(watched, next(stream(16).eval_batches()).inputs, lambda o: o.sum(), FP32.autocast, update=0.0)
    found.phase(Phase(0, 1, frozenset(net.parameters()), cut=0))
    assert set(ran) == {0, 1, 2} and largest == 1


# ---- the cache


def store(tmp_path: Path, where: str = "memory", limit: int = 2**30) -> FeatureStore:
    return FeatureStore(where, limit, tmp_path / "features")


def go_cached(
    tmp_path: Path, strategy: Any, name: str, caches: Any, augment: Augment | None = None, **more: Any
) -> Any:
    net = network(dropout=0.2)
    t = trial(tmp_path, net, strategy, name=name, **more)
    phases = frozenset(p for p in t.phases if p.cut)
    use = Caches(phases, caches, "train", "val") if caches else None
    train([t], Streams(stream(augment=augment), stream(), {}), Cadence(5, 5, 4), Silent(), 0, use)  # type: ignore[arg-type]
    t.run.__exit__(None, None, None)
    return net, t


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize(
    "strategy", [HeadOnly(), LpFt(0.6), Gradual(), Progressive([0.3, 0.6])], ids=lambda s: type(s).__name__
)
def test_cached_training_is_bit_for_bit_the_uncached(tmp_path: Path, strategy: Any, where: str) -> None:
    plain, t = go_cached(tmp_path, strategy, "plain", None, steps=15)
    kept, u = go_cached(tmp_path, strategy, "kept", store(tmp_path, where), steps=15)
    assert same(weights(plain), weights(kept)) and t.state.last == u.state.last


def test_averaged_weights_are_evaluated_as_without_a_cache(tmp_path: Path) -> None:
    """progressive: the trunk has trained before it froze, so its average is not what it computes with."""
    more = {"steps": 15, "ema": 0.7}
    _, t = go_cached(tmp_path, Progressive([0.3, 0.6]), "plain", None, **more)
    _, u = go_cached(tmp_path, Progressive([0.3, 0.6]), "kept", store(tmp_path), **more)
    assert t.state.last == u.state.last and t.state.best == u.state.best


def test_fixed_views_train_the_same_from_a_cache(tmp_path: Path) -> None:
    augment = Augment(flip=True, crop_padding=1, views=2)
    plain, _ = go_cached(tmp_path, HeadOnly(), "plain", None, augment, steps=15)
    kept, _ = go_cached(tmp_path, HeadOnly(), "kept", store(tmp_path), augment, steps=15)
    assert same(weights(plain), weights(kept))


def test_the_trunk_runs_once_and_never_again(tmp_path: Path) -> None:
    rows = []
    net = network()
    net.groups[0].module.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    for group in net.groups:
        group.module.eval()
    kept = store(tmp_path, "disk")
    trunk = cached(Trunk(net, [2], FP32, stream()), [2], kept, "data")
    assert sum(rows) == 40
    list(trunk.batches(0, 20))
    again = cached(Trunk(net, [2], FP32, stream()), [2], kept, "data")
    assert sum(rows) == 40 and torch.equal(trunk.cached[2].leaves[0], again.cached[2].leaves[0])
    cached(Trunk(net, [2], FP32, stream()), [2], kept, "other data")
    assert sum(rows) == 80
    with torch.no_grad():
        net.parameters()["stem.weight"][0, 0, 0, 0] += 1
    cached(Trunk(net, [2], FP32, stream()), [2], kept, "data")
    assert sum(rows) == 120  # other weights, other outputs
    cached(Trunk(net, [1], FP32, stream()), [1], kept, "data")
    assert sum(rows) == 160  # another cut


def test_a_damaged_entry_is_noticed_and_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = store(tmp_path, "disk")
    rows = torch.randn(10, 4)
    kept.keep("key", 10, iter(rows.split(4)))
    found = kept.find("key")
    assert found is not None and torch.equal(found, rows)
    path = tmp_path / "features" / "key" / "features.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    assert kept.find("key") is None and "damaged" in capsys.readouterr().out
    assert not (tmp_path / "features" / "key").exists()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    rows = torch.randn(10, 4)  # 160 bytes
    kept = store(tmp_path, "disk", limit=350)
    for i, key in enumerate("ab"):
        kept.keep(key, 10, iter([rows]))
        os.utime(tmp_path / "features" / key / "meta.json", (i, i))
    assert kept.find("a") is not None  # used now, so b is the older
    kept.keep("c", 10, iter([rows]))
    assert {p.name for p in (tmp_path / "features").iterdir()} == {"a", "c"}
    memory = store(tmp_path, "memory", limit=350)
    for key in "xyz":
        memory.keep(key, 10, iter([rows]))
    assert list(_MEMORY) == ["y", "z"]


def test_a_fill_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield torch.zeros(4, 4)
        raise RuntimeError("out of memory")

    kept = store(tmp_path, "disk")
    with pytest.raises(RuntimeError, match="out of memory"):
        kept.keep("key", 10, broken())
    assert not list((tmp_path / "features").iterdir()) and kept.find("key") is None


def test_channels_last_features_come_back_as_they_were(tmp_path: Path) -> None:
    rows = torch.randn(10, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    for where in ("memory", "disk"):
        kept = store(tmp_path, where)
        made = kept.keep("key", 10, iter(rows.split(5)))
        _MEMORY.clear()
        for found in (made, kept.find("key") if where == "disk" else made):
            assert found is not None and torch.equal(found, rows)
            assert found[torch.tensor([3, 1])].is_contiguous(memory_format=torch.channels_last)


SLOW, QUICK = PhaseCost(0.9, 0.9, 0.0, 10.0, 9.0), PhaseCost(0.1, 0.1, 0.0, 10.0, 1e-9)


@pytest.mark.parametrize(
    ("mode", "augment", "cost", "steps", "row", "said"),
    [
        ("auto", Augment(), SLOW, 50, 64, "memory, 0.0 MB"),
        ("memory", Augment(), QUICK, 50, 64, "memory"),
        ("disk", Augment(), SLOW, 50, 64, "disk"),
        ("off", Augment(), SLOW, 50, 64, "off"),
        ("auto", Augment(flip=True), SLOW, 50, 64, "no: augmentation is random"),
        ("auto", Augment(flip=True, views=2), SLOW, 50, 64, "memory"),
        ("auto", Augment(), QUICK, 50, 64, "no: reading would cost as much"),
        ("auto", Augment(), SLOW, 5, 64, "no: nothing is seen twice"),
        ("auto", Augment(), SLOW, 50, None, "no: no table holds what the trunk gives"),
        ("auto", Augment(), SLOW, 50, 2**20, "disk, 41.9 MB"),
        ("auto", Augment(), SLOW, 50, 2**22, "no: 160 MB are more than"),
    ],
)
def test_what_auto_decides(
    tmp_path: Path, mode: str, augment: Augment, cost: PhaseCost, steps: int, row: int | None, said: str
) -> None:
    runtime = replace(FP32, cache_memory_mb=32, cache_disk_mb=128)
    phases = HeadOnly().phases(network().groups, steps)
    data = {"train": "t", "val": "v"}
    caches, told = plan_caches(mode, phases, [cost], [row], stream(augment=augment), runtime, tmp_path, data)
    assert told[0].startswith(said)
    assert bool(caches.phases) == (not said.startswith(("no", "off")))


def test_a_cache_that_would_change_what_is_trained_is_refused(tmp_path: Path) -> None:
    data = {"train": "t", "val": "v"}
    phases = HeadOnly().phases(network().groups, 50)
    with pytest.raises(ValueError, match=r"freeze.cache=memory.*dataset.augment.views=4"):
        plan_caches("memory", phases, [SLOW], [64], stream(augment=Augment(flip=True)), FP32, tmp_path, data)


def test_a_whole_run_with_and_without(tmp_path: Path, run: Callable[..., Any]) -> None:
    more = ["model=resnet9_w16", "dataset=shapes10", "test=false", "epochs=4", "init_from=null", "optimizer.lr=0.1"]
    results = {}
    for mode in ("off", "memory", "disk"):
        results[mode] = run("stage=finetune", *more, f"freeze.cache={mode}", directory=tmp_path / mode)
    ends = {m: load_file(next((r.directory / "checkpoints").glob("step-00000024/model.safetensors")))
            for m, r in results.items()}  # fmt: skip
    assert same(ends["off"], ends["memory"]) and same(ends["off"], ends["disk"])
    assert "| disk, " in (results["disk"].directory / "freeze.md").read_text()
    records = [json.loads((r.directory / "run.json").read_text()) for r in results.values()]
    assert len({r["fingerprint"] for r in records}) == 1  # how features are had changes no weight


def test_dry_run_prints_the_plan_and_trains_nothing(
    tmp_path: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("stage=finetune", "freeze=gradual", "model=resnet9_w16", "dry_run=true")
    said = capsys.readouterr().out
    assert "dry run" in said and "what a step costs" in said and "from layer2" in said and "stops at layer3" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "outputs").exists()
