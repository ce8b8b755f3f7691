"""The loop and its trials against plain PyTorch, against themselves, and against what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hydratune.core.layer_groups import parameter_names
from hydratune.core.types import Backbone
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_stream import ImageStream
from hydratune.data.stream import Batches, Placement
from hydratune.distributed.runtime import Runtime
from hydratune.engine.nonfinite import NonFinite
from hydratune.freeze.report import trains as rows
from hydratune.freeze.strategies import HeadOnly, LastGroups, NoFreeze, Pattern
from hydratune.models.network import build_network
from hydratune.optim.optimizers import SGD, AdamW, OptimizerConfig, Torch
from hydratune.optim.schedules import (
    BitHyperRule,
    Constant,
    Cosine,
    Linear,
    MultiStep,
    OneCycle,
    Schedule,
    WarmupStableDecay,
)
from hydratune.record import checkpoint
from hydratune.tasks.classification import Classification
from tests.tiny import CPU, SPEC, go, network, same, stream, trial, weights

# ---- against plain PyTorch


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_engine_is_the_loop_one_would_write(tmp_path: Path, clip: float | None) -> None:
    ours, plain = network(), network()
    go([trial(tmp_path, ours, schedule=Cosine(warmup_steps=3), clip=clip)])
    model = nn.Sequential(*[g.module for g in plain.groups]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, batch in enumerate(stream().batches(0, 12)):
        optimizer.param_groups[0]["lr"] = 0.05 * Cosine(warmup_steps=3).factor(step, 12)
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in weights(plain).items():
        assert torch.allclose(tensor, weights(ours)[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("micro", [2, 3, 8])
def test_accumulation_is_exact_also_where_parts_are_ragged(tmp_path: Path, micro: int) -> None:
    whole, parts = network(norm=False), network(norm=False)
    go([trial(tmp_path, whole, name="whole", clip=1.0)])
    go([trial(tmp_path, parts, name="parts", clip=1.0, accumulate=micro)])
    for name, tensor in weights(whole).items():
        assert torch.allclose(tensor, weights(parts)[name], rtol=1e-4, atol=1e-6), name


def test_averaged_weights_follow_the_formula_and_leave_frozen_ones_alone(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, HeadOnly(), steps=5, ema=0.8)
    expected = {n: p.detach().clone() for n, p in net.parameters().items()}
    for step, batch in enumerate(stream().batches(0, 5)):
        t.step(step, batch.inputs, batch, 0)
        expected = {n: 0.8 * e + 0.2 * net.parameters()[n].detach() for n, e in expected.items()}
    assert set(t.ema) == {"head.weight", "head.bias"}
    assert all(torch.allclose(t.ema[n], expected[n], atol=1e-6) for n in t.ema)
    trained = weights(net)
    with t.averaged_weights():
        assert torch.equal(net.parameters()["head.weight"], t.snapshot(0).model["head.weight"])
        assert not torch.equal(trained["head.weight"], net.parameters()["head.weight"])
    assert same(trained, weights(net))


def test_label_smoothing_and_soft_targets_are_torchs(tmp_path: Path) -> None:
    from hydratune.core.types import Batch

    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    soft = F.one_hot(targets, 3).float() * 0.7 + 0.1
    for t in (targets, soft):
        loss = Classification(label_smoothing=0.1).loss(logits, Batch(logits, t, targets))
        assert torch.allclose(loss.mean(), F.cross_entropy(logits, t, label_smoothing=0.1))


# ---- freezing


@pytest.mark.parametrize(
    ("strategy", "cut", "still"),
    [
        (NoFreeze(), 0, set()),
        (HeadOnly(), 2, {"stem.weight", "bn.weight", "bn.running_mean", "middle.weight", "bn2.running_var"}),
        (LastGroups(1), 1, {"stem.weight", "bn.weight", "bn.running_mean", "bn.num_batches_tracked"}),
        (LastGroups(0.5), 1, {"stem.weight", "bn.bias", "bn.running_var"}),
        (Pattern(train=["head", r"middle\."]), 1, {"stem.weight", "bn.running_mean", "bn2.weight"}),
        (Pattern(freeze=["stem"]), 1, {"stem.weight", "bn.running_mean"}),
    ],
)
def test_what_is_frozen_stands_still_and_the_rest_moves(
    tmp_path: Path, strategy: Any, cut: int, still: set[str]
) -> None:
    """Momentum, weight decay and train() are what moves frozen tensors elsewhere."""
    net = network()
    before = weights(net)
    t = trial(tmp_path, net, strategy, recipe=AdamW(0.01, weight_decay=0.3, decay_norm_and_bias=True))
    go([t])
    assert t.fork == cut
    after = weights(net)
    unmoved = {n for n in before if torch.equal(before[n], after[n])}
    assert still <= unmoved
    trainable = t.phases[0].trainable
    assert not trainable & unmoved
    assert set(parameter_names(net.groups)[-1]) <= trainable
    state = {n.rpartition("|")[0] for n in t.snapshot(0).optimizer}
    assert state == set(trainable)  # state is there exactly for what has trained


def test_the_end_of_a_phase_notices_a_frozen_tensor_that_moved(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, HeadOnly())
    t.enter(t.phases[0])
    t.leave()
    with torch.no_grad():
        net.buffers()["bn.running_mean"][0] += 1e-7
    with pytest.raises(RuntimeError, match="a frozen parameter or buffer changed"):
        t.leave()


def test_backward_stops_at_the_cut(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, HeadOnly())
    t.enter(t.phases[0])
    batch = next(stream().batches(0, 1))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        t.step(0, batch.inputs, batch, 0)
    images = batch.inputs.numel()
    assert sum(kept) < images  # activations of the trunk alone would be several times that
    assert all(p.grad is None for n, p in net.parameters().items() if not n.startswith("head"))


def test_dropout_in_a_frozen_trunk_is_off(tmp_path: Path) -> None:
    net = network(dropout=0.9)
    t = trial(tmp_path, net, HeadOnly())
    t.enter(t.phases[0])
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net.forward(x, 0, 2), net.forward(x, 0, 2))


def test_the_freeze_report_tells_what_trains() -> None:
    net = network()
    (row,) = rows(net.groups, LastGroups(1).phases(net.groups, 10))
    assert row[1:3] == ("0-9", "middle, head") and "stops at middle" in row[6]
    (row,) = rows(net.groups, Pattern(train=["stem", "head"]).phases(net.groups, 10))
    assert "runs through all, through frozen middle" in row[6]


def test_a_pattern_that_matches_nothing_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"freeze\.train=midle matches no parameter; nearest: middle.*stem\.weight"):
        Pattern(train=["midle"]).phases(network().groups, 5)
    with pytest.raises(ValueError, match="not a regular expression"):
        Pattern(train=["("]).phases(network().groups, 5)
    with pytest.raises(ValueError, match="nothing would train"):
        Pattern(freeze=["."]).phases(network().groups, 5)


# ---- several trials in one loop


def test_trials_over_one_trunk_equal_each_alone(tmp_path: Path) -> None:
    """Shared batches and trunk do not change what a trial computes: bit for bit on the CPU."""
    base = network(dropout=0.2)
    strategies = [HeadOnly(), LastGroups(1), HeadOnly()]
    recipes: list[OptimizerConfig] = [SGD(0.1), AdamW(0.01), SGD(0.01, momentum=0.9)]
    alone = []
    for i, (s, r) in enumerate(zip(strategies, recipes, strict=True)):
        net = base.fork(0)
        go(
            [trial(tmp_path, net, s, steps=8 + 2 * i, recipe=r, name=f"alone{i}")],
            data=stream(augment=Augment(flip=True)),
        )
        alone.append(weights(net))
    nets = [base.fork(s.phases(base.groups, 1)[0].cut) for s in strategies]
    assert nets[0].groups[0].module is nets[1].groups[0].module  # the trunk is one
    together = [
        trial(tmp_path, net, s, steps=8 + 2 * i, recipe=r, name=f"together{i}")
        for i, (net, s, r) in enumerate(zip(nets, strategies, recipes, strict=True))
    ]
    go(together, data=stream(augment=Augment(flip=True)))
    for net, expected in zip(nets, alone, strict=True):
        assert same(weights(net), expected)


# ---- resuming


@pytest.mark.parametrize("strategy", [NoFreeze(), HeadOnly(), LastGroups(1), Pattern(freeze=["bn"])])
@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_resumed_trial_ends_bit_for_bit_where_it_would_have(tmp_path: Path, strategy: Any, at: int) -> None:
    data = stream(augment=Augment(flip=True, crop_padding=1, mixup=0.3))
    options: dict[str, Any] = {"recipe": AdamW(0.01), "schedule": Cosine(0.2), "ema": 0.9, "clip": 1.0}
    whole = network(dropout=0.3)
    full = trial(tmp_path, whole, strategy, name="whole", **options)
    go([full], data=data)

    half = network(dropout=0.3)
    t = trial(tmp_path, half, strategy, name="half", **options)
    for step, batch in enumerate(data.batches(0, at)):
        t.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "c", at, t.snapshot(at)))
    t.run.__exit__(None, None, None)

    other = network(dropout=0.3).fork(0)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.add_(1)
    t = trial(tmp_path, other, strategy, name="other", **options)
    assert t.restore(saved) == at
    go([t], first=at, data=data)
    assert same(weights(whole), weights(other))
    a, b = full.snapshot(12), t.snapshot(12)
    assert same(dict(a.optimizer), dict(b.optimizer)) and same(dict(a.ema), dict(b.ema))


def test_state_of_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net)
    go([t])
    snapshot = t.snapshot(12)
    renamed = {k.replace("stem.weight", "trunk.weight"): v for k, v in snapshot.optimizer.items()}
    with pytest.raises(ValueError, match=r"unknown parameter, trunk\.weight"):
        t.restore(checkpoint.Snapshot(snapshot.model, renamed, {}, snapshot.state))
    missing = {k: v for k, v in snapshot.model.items() if k != "stem.weight"}
    with pytest.raises(ValueError, match=r"missing \['stem\.weight'\]"):
        t.restore(checkpoint.Snapshot(missing, snapshot.optimizer, {}, snapshot.state))


# ---- numbers that go wrong


class Poisoned(ImageStream):
    def batches(self, first_step: int, last_step: int) -> Iterator[Any]:
        for step, batch in enumerate(super().batches(first_step, last_step), first_step):
            if step == 3:
                batch.inputs[2, 0, 0, 0] = float("inf")
            yield batch


def test_what_is_not_finite_stops_before_the_update_and_names_the_samples(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net)
    s = stream()
    poisoned = Poisoned(s.split, SPEC, Batches(8, 5), Placement(CPU))
    with pytest.raises(NonFinite, match="step 3: .* is not finite"):
        go([t], data=poisoned)
    t.run.__exit__(None, None, None)
    clean = network()
    t2 = trial(tmp_path, clean, steps=12, name="clean")
    for step, batch in enumerate(s.batches(0, 3)):
        t2.step(step, batch.inputs, batch, 0)
    assert {n: torch.equal(p, clean.parameters()[n]) for n, p in net.parameters().items()} == dict.fromkeys(
        net.parameters(), True
    )
    ids = next(s.batches(3, 4)).ids.tolist()
    assert t.run.record.nonfinite["sample_ids"] == ids


def test_early_stopping(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, steps=40, recipe=SGD(1e-12), patience=2)
    go([t], every=4)
    assert t.state.stopped == "no better accuracy in 2 evaluations" and t.state.best["step"] == 4
    assert checkpoint.steps(t.run.checkpoints) == [4, 12]  # the best and the last


def test_an_early_stop_survives_the_checkpoint(tmp_path: Path) -> None:
    t = trial(tmp_path, network(), steps=40, recipe=SGD(1e-12), patience=1)
    go([t], every=4)
    assert t.state.stopped
    again = trial(tmp_path, network(), steps=40, patience=1, name="again")
    again.restore(checkpoint.load(t.run.checkpoints / "step-00000008"))
    assert again.state.stopped == t.state.stopped
    before = weights(again.network)
    go([again], first=8)
    assert same(before, weights(again.network))


def test_a_group_without_parameters_follows_the_cut(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    groups = [("noise", nn.Dropout(0.5)), ("body", source), ("more_noise", nn.Dropout(0.5))]
    net = build_network(Backbone(source, groups), nn.Linear(8, 3))
    for strategy, modes in ((NoFreeze(), [False, True, True, True]), (HeadOnly(), [False, False, False, True])):
        t = trial(tmp_path, net, strategy, name=type(strategy).__name__)
        t.enter(t.phases[0])
        assert [g.module.training for g in net.groups] == modes  # noise before the first thing that trains is off
        t.run.__exit__(None, None, None)


def test_factored_optimizer_state_resumes(tmp_path: Path) -> None:
    t = trial(tmp_path, network(), recipe=Torch("Adafactor", 0.01))
    go([t])
    other = trial(tmp_path, network(), recipe=Torch("Adafactor", 0.01), name="other")
    saved = checkpoint.load(checkpoint.save(tmp_path / "c", 12, t.snapshot(12)))
    other.restore(saved)
    assert same(dict(other.snapshot(12).optimizer), dict(saved.optimizer))


# ---- schedules and rates


def test_one_cycle_is_torch_s() -> None:
    for warmup, steps in ((0.3, 100), (0.1, 40), (0.25, 8)):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=warmup)
        ours = OneCycle(warmup)
        for step in range(steps):
            assert ours.factor(step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), (steps, step)
            optimizer.step()
            if step < steps - 1:
                theirs.step()


def test_stable_until_it_decays() -> None:
    schedule = WarmupStableDecay(warmup_steps=10, decay_steps=0.2, final=0.1)
    rates = [schedule.factor(step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)]) and rates[10:91] == [1.0] * 81
    assert rates[91:] == sorted(rates[91:], reverse=True) and rates[95] == pytest.approx(0.1 + 0.9 * 0.5)
    assert [schedule.factor(step, 1000) for step in range(90)] == rates[:90]  # longer, it has begun the same


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), {0: 1.0, 99: 1.0}),
        (Constant(warmup_steps=10), {0: 0.1, 9: 1.0, 50: 1.0}),
        (Cosine(), {0: 1.0, 50: 0.5}),
        (Cosine(warmup_steps=0.2, final=0.1), {0: 0.05, 20: 1.0, 60: 0.55}),
        (Linear(), {0: 1.0, 25: 0.75, 75: 0.25}),
        (MultiStep(milestones=(0.5, 0.75), gamma=0.1), {49: 1.0, 50: 0.1, 75: 0.01}),
    ],
)
def test_schedules(schedule: Schedule, expected: dict[int, float]) -> None:
    assert {s: schedule.factor(s, 100) for s in expected} == pytest.approx(expected)


def test_rates_per_layer_group() -> None:
    net = network()
    recipe = AdamW(0.1, weight_decay=0.5, layer_decay=0.5, head_lr_multiplier=10)
    optimizer = recipe.build(net.groups, net.parameters())
    rate = {n: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for n in g["names"]}
    assert rate["stem.weight"] == (0.025, 0.5) and rate["bn.weight"] == (0.025, 0.0)
    assert rate["middle.weight"] == (0.05, 0.5) and rate["middle.bias"] == (0.05, 0.0)
    assert rate["head.weight"] == (1.0, 0.5)


def test_any_torch_optimizer_by_name() -> None:
    net = network()
    recipe = Torch("RAdam", 0.01, options={"betas": (0.8, 0.9)})
    assert recipe.build(net.groups, net.parameters()).param_groups[0]["betas"] == (0.8, 0.9)
    with pytest.raises(ValueError, match=r"optimizer\.name=Radm: no such class in torch\.optim; nearest: R?[A]dam"):
        Torch("Radm", 0.01)


def test_muon_updates_convolutions(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from hydratune.optim.optimizers import Muon

    net = network()
    before = weights(net)
    go([trial(tmp_path, net, recipe=Muon(0.02))])
    assert not torch.equal(before["stem.weight"], weights(net)["stem.weight"])


# ---- precision


def test_bf16_and_channels_last_train(tmp_path: Path) -> None:
    from hydratune.distributed.runtime import Precision

    net = network()
    t = trial(tmp_path, net)
    t.runtime = t.runtime.choose(Precision(torch.bfloat16, channels_last=True))
    net.to(CPU, torch.channels_last)
    before = weights(net)
    go([t])
    assert all(p.dtype == torch.float32 for p in net.parameters().values())
    assert not torch.equal(before["stem.weight"], weights(net)["stem.weight"])


def test_the_probe_is_remembered_and_leaves_the_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.engine import autotune

    monkeypatch.setenv("HYDRATUNE_CACHE", str(tmp_path))
    net, batch = network(), next(stream().eval_batches())
    before = weights(net)
    chosen, how = autotune.choose_precision(net, Classification(), batch, Runtime(), "tiny")
    assert same(before, weights(net)) and how.startswith("probed (fp32")
    monkeypatch.setattr(autotune, "_measure", lambda *a: pytest.fail("measured twice"))
    again, how = autotune.choose_precision(net, Classification(), batch, Runtime(), "tiny")
    assert again == chosen and how.startswith("probed earlier")
    monkeypatch.setattr(
        autotune, "_measure", lambda n, t, b, r, c: dict(zip(c, ([1.0], [0.96], [0.5], [2.0]), strict=False))
    )
    chosen, _ = autotune.choose_precision(net, Classification(), batch, Runtime(), "other")
    assert str(chosen) in ("bf16", "fp32")  # a gain of 4% is noise; half the time is not
    assert (
        autotune.choose_precision(net, Classification(), batch, Runtime(precision="fp32"), "x")[0].dtype
        == torch.float32
    )


@pytest.mark.slow
def test_compile_trains_what_the_phase_says(tmp_path: Path) -> None:
    eager, compiled = network(), network()
    go([trial(tmp_path, eager, LastGroups(1), name="eager")])
    t = trial(tmp_path, compiled, LastGroups(1), name="compiled")
    t.runtime = Runtime(precision="fp32", compile=True)
    go([t])
    for name, tensor in weights(eager).items():
        assert torch.allclose(tensor, weights(compiled)[name], atol=1e-4), name
    assert not [n for n in t.snapshot(1).model if "_orig_mod" in n]


@pytest.mark.parametrize(
    ("samples", "steps", "warmup", "drops"),
    [(500, 500, 100, [200, 300, 400]), (19_999, 500, 100, [200, 300, 400]), (20_000, 10_000, 500, [3000, 6000, 9000]),
     (499_999, 10_000, 500, [3000, 6000, 9000]), (500_000, 20_000, 500, [6000, 12_000, 18_000])],
)  # fmt: skip
def test_bit_s_rule(samples: int, steps: int, warmup: int, drops: list[int]) -> None:
    """As big_transfer's bit_hyperrule.py has it."""
    schedule = BitHyperRule()
    assert schedule.num_steps(samples) == steps
    assert schedule.factor(0, steps) == 1 / warmup and schedule.factor(warmup - 1, steps) == 1.0
    for number, drop in enumerate(drops, start=1):
        assert schedule.factor(drop, steps) == pytest.approx(0.1**number)
        assert schedule.factor(drop - 1, steps) == pytest.approx(0.1 ** (number - 1))


def test_bit_s_rule_is_scaled_to_the_steps_that_are_typed() -> None:
    factors = [BitHyperRule().factor(step, 50) for step in range(50)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[19:21] == pytest.approx([1.0, 0.1]) and factors[39:41] == pytest.approx([0.01, 0.001])


def test_other_schedules_leave_the_length_to_the_user() -> None:
    assert Cosine().num_steps(10) is None and Constant().num_steps(10**6) is None
