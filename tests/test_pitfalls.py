"""The thirteen ways in which freezing goes wrong elsewhere; each test fails for the wrong implementation it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

from hydratune.core.types import Backbone, Phase
from hydratune.data.images.augment import Augment
from hydratune.distributed.runtime import Runtime
from hydratune.freeze.cost import CostMeter
from hydratune.freeze.schedules import FreezeUnfreeze, Gradual, LpFt, Progressive
from hydratune.freeze.strategies import BiasOnly, HeadOnly, LastGroups, NoFreeze
from hydratune.models.load_weights import InitRules, load_into
from hydratune.models.network import Network, build_network
from hydratune.optim.optimizers import SGD, AdamW
from hydratune.optim.schedules import Cosine
from hydratune.record import checkpoint
from tests.tiny import SPEC, go, network, same, stream, trial, weights


def run(tmp_path: Path, strategy: Any, net: Network | None = None, **more: Any) -> tuple[Network, Any]:
    net = net or network()
    t = trial(tmp_path, net, strategy, **more)
    go([t])
    return net, t


def test_1_statistics_of_frozen_norms_stand_still_through_evaluations(tmp_path: Path) -> None:
    """Lightning's BaseFinetuning keeps BatchNorm training; elsewhere the next model.train() undoes eval()."""
    net, before = network(), weights(network())
    t = trial(tmp_path, net, HeadOnly(), steps=8)
    go([t], every=2)  # each evaluation switches to eval and back
    assert all(torch.equal(before[n], tensor) for n, tensor in weights(net).items() if "running" in n or "tracked" in n)
    net.groups[0].module.train()  # what model.train() would do: the same run sees them move
    net.forward(next(stream().eval_batches()).inputs)
    assert not torch.equal(before["bn.running_mean"], net.buffers()["bn.running_mean"])


def test_2_one_parameter_near_the_input_keeps_the_whole_backward_pass_and_the_report_says_so() -> None:
    """BitFit is sold as cheap: it saves optimizer state, not activations."""
    from hydratune.freeze.report import trains

    net = network(norm=False)
    inputs = next(stream().eval_batches()).inputs
    meter = CostMeter(net.groups, inputs, lambda o: o.sum(), Runtime(precision="fp32").autocast, update=0.0)
    conv_bias = Phase(0, 1, frozenset({"middle.bias", "head.bias"}), cut=1)
    whole, bias, head = (
        meter.phase(p) for p in (NoFreeze().phases(net.groups, 1)[0], conv_bias, HeadOnly().phases(net.groups, 1)[0])
    )
    assert bias.saved_bytes > 0.2 * whole.saved_bytes and head.saved_bytes < 0.2 * whole.saved_bytes
    said = trains(net.groups, BiasOnly().phases(net.groups, 5))[0][6]
    assert said == "stops at middle, because of middle.bias"


def test_3_what_thaws_is_in_the_optimizer_from_the_start_and_trains(tmp_path: Path) -> None:
    """Lightning's BackboneFinetuning adds parameter groups on the way; a filter at construction forgets them."""
    net, before = network(norm=False), weights(network(norm=False))
    t = trial(tmp_path, net, Gradual(), steps=9)
    held = {id(p) for group in t.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters().values()}
    go([t])
    after = weights(net)
    assert not [n for n in net.parameters() if torch.equal(before[n], after[n])]


@pytest.mark.parametrize("recipe", [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(0.01, weight_decay=0.3)])
def test_4_frozen_again_means_still(tmp_path: Path, recipe: Any) -> None:
    """fastai sets requires_grad but leaves zero gradients: momentum and decay go on. And clipping counts stale ones."""
    net = network()
    t = trial(tmp_path, net, Progressive([0.5]), steps=6, recipe=recipe, clip=1.0)
    batches = list(stream().batches(0, 6))
    for step in range(3):
        t.step(step, batches[step].inputs, batches[step], 0)
    t.step(3, batches[3].inputs, batches[3], 0)
    stem = net.parameters()["stem.weight"].detach().clone()
    for step in range(4, 6):
        t.step(step, batches[step].inputs, batches[step], 0)
        assert net.parameters()["stem.weight"].grad is None
    assert torch.equal(stem, net.parameters()["stem.weight"])


def test_4_clipping_sees_only_what_trains(tmp_path: Path) -> None:
    clean, stale = network(norm=False), network(norm=False)
    for name, net in (("clean", clean), ("stale", stale)):
        t = trial(tmp_path, net, HeadOnly(), steps=1, clip=0.01, name=name)
        if net is stale:
            for parameter in net.parameters().values():
                parameter.grad = torch.full_like(parameter, 100.0)
            t.enter(t.phases[0])
            for parameter in net.parameters().values():
                assert parameter.grad is None or parameter.requires_grad
            t.optimizer.zero_grad()
        batch = next(stream().batches(0, 1))
        t.step(0, batch.inputs, batch, 0)
    assert same(weights(clean), weights(stale))


def test_5_frozen_is_not_a_learning_rate_of_zero(tmp_path: Path) -> None:
    """A rate of zero pays the whole backward pass, and statistics drift."""
    net = network()
    t = trial(tmp_path, net, HeadOnly(), steps=2)
    t.enter(t.phases[0])
    assert not any(p.requires_grad for n, p in net.parameters().items() if not n.startswith("head"))
    assert not any(layer.training for g in net.groups[:2] for layer in g.module.modules())
    zero = network()
    before = weights(zero)
    u = trial(tmp_path, zero, NoFreeze(), steps=2, recipe=SGD(1e-30), name="zero")
    go([u])
    assert not torch.equal(before["bn.running_mean"], weights(zero)["bn.running_mean"])


def _rank(rank: int, home: Path, init: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    net = network(norm=False)
    t = trial(home / str(rank), net, Gradual(), steps=6, clip=0.5, runtime=Runtime(precision="fp32", keep_memory=False,
              rank=rank, world=2))  # fmt: skip
    for step, batch in enumerate(stream().batches(0, 6)):
        half = type(batch)(*(x[:5] if rank == 0 else x[5:] for x in (batch.inputs, batch.targets, batch.ids)))
        t.step(step, half.inputs, half, 0)
    checkpoint.save(home / f"rank{rank}", 6, t.snapshot(6))
    dist.destroy_process_group()


@pytest.mark.slow
def test_6_thawed_gradients_are_reduced_over_ranks(tmp_path: Path) -> None:
    """DistributedDataParallel reduces what was trainable when it wrapped; later thawed layers diverge in silence."""
    init = f"file://{tmp_path}/store"
    torch.multiprocessing.spawn(_rank, (tmp_path, init), nprocs=2)
    alone = network(norm=False)
    t = trial(tmp_path, alone, Gradual(), steps=6, clip=0.5)
    for step, batch in enumerate(stream().batches(0, 6)):
        t.step(step, batch.inputs, batch, 0)
    ranks = [checkpoint.load(tmp_path / f"rank{r}" / "step-00000006").model for r in (0, 1)]
    assert same(dict(ranks[0]), dict(ranks[1]))
    for name, tensor in weights(alone).items():
        assert torch.allclose(tensor, ranks[0][name], rtol=1e-5, atol=1e-6), name


def test_7_a_graph_is_compiled_for_each_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph from before the change trains nothing that has thawed since."""
    compiled: list[frozenset[str]] = []

    def fake_compile(function: Any) -> Any:
        trains = frozenset(n for n, p in net.parameters().items() if p.requires_grad)
        compiled.append(trains)

        def call(*args: Any) -> Any:
            # A graph holds on to what trained when it was made.
            assert trains == frozenset(n for n, p in net.parameters().items() if p.requires_grad)
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    net = network()
    runtime = Runtime(precision="fp32", keep_memory=False, compile=True)
    t = trial(tmp_path, net, Gradual(), steps=9, runtime=runtime)
    go([t])
    assert compiled == [p.trainable for p in t.phases] and len(compiled) == 3


@pytest.mark.scenario(11)
@pytest.mark.parametrize(
    "strategy", [Gradual(), Progressive([0.3, 0.6]), LpFt(0.5), FreezeUnfreeze(4)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("at", [2, 4, 6, 7])
def test_8_resuming_inside_any_phase_changes_nothing(tmp_path: Path, strategy: Any, at: int) -> None:
    """Lightning's finetuning callbacks break on resume: optimizer groups of the checkpoint and of the start differ."""
    whole, _ = run(tmp_path, strategy, network(dropout=0.3), steps=12, recipe=AdamW(0.01), name="whole")
    first = network(dropout=0.3)
    t = trial(tmp_path, first, strategy, steps=12, recipe=AdamW(0.01), name="first")
    for step, batch in enumerate(stream().batches(0, at)):
        t.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "saved", at, t.snapshot(at)))
    second = network(dropout=0.3)
    u = trial(tmp_path, second, strategy, steps=12, recipe=AdamW(0.01), name="second")
    go([u], first=u.restore(saved))
    assert same(weights(whole), weights(second))


def test_9_layer_decay_reaches_the_optimizer_under_any_schedule_and_is_logged(tmp_path: Path) -> None:
    """timm keeps lr_scale beside the group and only its own schedulers read it."""
    net = network()
    recipe = SGD(0.1, layer_decay=0.5, head_lr_multiplier=10)
    t = trial(tmp_path, net, NoFreeze(), steps=10, recipe=recipe, schedule=Cosine())
    logged: dict[str, float] = {}
    t.run.board.scalars = lambda values, step: logged.update(values)  # type: ignore[method-assign]
    for step, batch in enumerate(stream().batches(0, 6)):
        t.step(step, batch.inputs, batch, 0)
    t.log(6, 48, 1.0)
    factor = Cosine().factor(5, 10)
    applied = {n: g["lr"] for g in t.optimizer.param_groups for n in g["names"]}
    for group, name, rate in (
        ("stem", "stem.weight", 0.025),
        ("middle", "middle.bias", 0.05),
        ("head", "head.bias", 1),
    ):
        assert logged[f"lr/{group}"] == applied[name] == pytest.approx(rate * factor)


def test_10_dropout_in_a_frozen_trunk_adds_no_noise(tmp_path: Path) -> None:
    net = network(dropout=0.9)
    t = trial(tmp_path, net, HeadOnly())
    t.enter(t.phases[0])
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net.forward(x, 0, 2), net.forward(x, 0, 2))
    t.enter(NoFreeze().phases(net.groups, 12)[0])
    assert not torch.equal(net.forward(x, 0, 2), net.forward(x, 0, 2))


def test_11_groups_are_in_execution_order_whatever_the_order_of_definition() -> None:
    """Freezing "the first n parameters" follows __init__; a layer defined first may run last."""
    source = nn.Module()
    source.late, source.early = nn.Linear(4, 4), nn.Linear(4, 4)  # defined the other way round
    net = build_network(Backbone(source, [("early", source.early), ("late", source.late)]), nn.Linear(4, 2))
    (phase,) = LastGroups(1).phases(net.groups, 5)
    assert phase.cut == 1 and {n for n in phase.trainable if "late" in n} and not [
        n for n in phase.trainable if "early" in n
    ]  # fmt: skip


def test_12_a_silent_mismatch_fails_and_is_counted() -> None:
    """strict=False fine-tunes a random trunk while the log says "loaded" (timm, MMEngine, Lightning issues)."""
    net = network()
    tensors = {f"encoderr.{n}": t.clone() for n, t in net.state_dict().items()}
    head = set(net.head.names.values())
    with pytest.raises(ValueError, match="only 0.0% of the trunk"):
        load_into(net.state_dict(), head, tensors, "elsewhere")
    report = load_into(net.state_dict(), head, tensors, "elsewhere", InitRules(share=0.0, unused=1.0))
    assert not report.loaded and len(report.initialised) == len(net.state_dict())


def test_13_a_tied_weight_lies_on_one_side_of_the_cut(tmp_path: Path) -> None:
    """A decoder tied to the embedding: "only the head trains" would train the first layer."""
    source = nn.Module()
    source.embed, source.middle = nn.Linear(192, 192, bias=False), nn.Linear(192, 192)
    tied = nn.Sequential(nn.Linear(192, 192, bias=False), nn.ReLU())
    tied[0].weight = source.embed.weight
    groups = [("embed", nn.Sequential(nn.Flatten(), source.embed)), ("middle", source.middle), ("tied", tied)]
    net = build_network(Backbone(source, groups), nn.Linear(192, SPEC.num_classes))
    before = weights(net)
    (phase,) = LastGroups(1).phases(net.groups, 6)
    assert "embed.weight" not in phase.trainable
    run(tmp_path, LastGroups(1), net, steps=6)
    assert torch.equal(before["embed.weight"], weights(net)["embed.weight"])


# ---- phases within one run


def test_momentum_is_kept_for_what_goes_on_and_fresh_for_what_thaws(tmp_path: Path) -> None:
    net = network(norm=False)
    t = trial(tmp_path, net, Gradual(4), steps=12)
    batches = list(stream().batches(0, 12))
    for step in range(4):
        t.step(step, batches[step].inputs, batches[step], 0)
    head = net.parameters()["head.weight"]
    kept = t.optimizer.state[head]["momentum_buffer"].clone()
    assert not t.optimizer.state.get(net.parameters()["middle.weight"])
    t.step(4, batches[4].inputs, batches[4], 0)
    # momentum 0.9: what was there before is nine tenths of what it was, plus a gradient
    now = t.optimizer.state[head]["momentum_buffer"]
    assert torch.dot(now.flatten(), kept.flatten()) > 0.5 * kept.norm() * now.norm()
    assert t.optimizer.state[net.parameters()["middle.weight"]]["momentum_buffer"].abs().sum() > 0


class ThawsAgain:
    """A user's own: the stem trains, rests, and trains again."""

    def phases(self, groups: Any, num_steps: int) -> list[Phase]:
        every = frozenset(n for g in groups for n in g.names.values() if "running" not in n and "tracked" not in n)
        rest = frozenset(n for n in every if not n.startswith("stem"))
        third = num_steps // 3
        cuts = [(0, third, every, 0), (third, 2 * third, rest, 1), (2 * third, num_steps, every, 0)]
        return [Phase(a, b, names, cut) for a, b, names, cut in cuts]


@pytest.mark.parametrize("at", [8, 9])
def test_what_thaws_again_begins_with_fresh_momentum_also_when_resumed_there(tmp_path: Path, at: int) -> None:
    whole, _ = run(tmp_path, ThawsAgain(), network(norm=False), name="whole")
    t = trial(tmp_path, network(norm=False), ThawsAgain(), name="first")
    batches = list(stream().batches(0, 12))
    for step in range(8):
        t.step(step, batches[step].inputs, batches[step], 0)
    if at == 9:
        stem, head = (t.network.parameters()[n] for n in ("stem.weight", "head.weight"))
        t._begin(t.phases[2])
        assert not t.optimizer.state.get(stem) and "momentum_buffer" in t.optimizer.state[head]
        t.step(8, batches[8].inputs, batches[8], 0)
    second = network(norm=False)
    u = trial(tmp_path, second, ThawsAgain(), name="second")
    go([u], first=u.restore(t.snapshot(at)))
    assert same(weights(whole), weights(second))


def test_a_phase_has_a_rate_and_a_scale_of_its_own_and_is_marked(tmp_path: Path) -> None:
    net = network()
    t = trial(tmp_path, net, LpFt(0.5, probe_lr=0.2), steps=8, recipe=SGD(0.05))
    marks: list[tuple[int, dict[str, float]]] = []
    t.run.board.scalars = lambda values, step: marks.append((step, dict(values)))  # type: ignore[method-assign]
    rates = []
    for step, batch in enumerate(stream().batches(0, 8)):
        t.step(step, batch.inputs, batch, 0)
        rates.append(t.rates()["head"])
    assert rates == pytest.approx([0.2] * 4 + [0.05] * 4)
    phases = [(step, m["phase/index"], m["phase/trainable_share"]) for step, m in marks if "phase/index" in m]
    assert [p[:2] for p in phases] == [(1, 0), (5, 1)] and phases[0][2] < phases[1][2] == 1.0
    u = trial(tmp_path, network(), FreezeUnfreeze(4, lr_scale=0.1), steps=8, recipe=SGD(0.05), name="scaled")
    for step, batch in enumerate(stream().batches(0, 8)):
        u.step(step, batch.inputs, batch, 0)
    assert u.rates()["head"] == pytest.approx(0.005)


@pytest.mark.parametrize("norm", ["frozen", "statistics", "affine"])
def test_the_norm_policy(tmp_path: Path, norm: str) -> None:
    from hydratune.freeze.phases import with_norms

    class Policy:
        def phases(self, groups: Any, num_steps: int) -> list[Phase]:
            return with_norms(HeadOnly().phases(groups, num_steps), groups, norm)

    net, before = network(), weights(network())
    _, t = run(tmp_path, Policy(), net)
    moved = {n for n, tensor in weights(net).items() if not torch.equal(tensor, before[n])}
    statistics = {n for n in before if "bn" in n and ("running" in n or "tracked" in n)}
    affine = {"bn.weight", "bn.bias", "bn2.weight", "bn2.bias"}
    head = {"head.weight", "head.bias"}
    expected = {"frozen": head, "statistics": head | statistics, "affine": head | statistics | affine}
    assert moved == expected[norm]
    assert t.fork == (2 if norm == "frozen" else 0)


def test_l2_sp_pulls_the_trunk_to_where_it_started(tmp_path: Path) -> None:
    """Equation 2 of arXiv 1802.01483: its gradient is added to the loss's; the head is not pulled."""
    ours, plain = network(norm=False), network(norm=False)
    start = weights(plain)
    go([trial(tmp_path, ours, recipe=SGD(0.05, l2_sp=0.5), name="ours")])
    model = nn.Sequential(*[g.module for g in plain.groups]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in stream().batches(0, 12):
        loss: Tensor = nn.functional.cross_entropy(model(batch.inputs), batch.targets)
        for name, parameter in plain.parameters().items():
            if not name.startswith("head"):
                loss = loss + 0.25 * (parameter - start[name]).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in weights(plain).items():
        assert torch.allclose(tensor, weights(ours)[name], rtol=1e-4, atol=1e-6), name


def test_l2_sp_resumes_with_the_weights_it_started_from(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, LpFt(0.5), recipe=SGD(0.05, l2_sp=0.5), name="whole")
    t = trial(tmp_path, network(), LpFt(0.5), recipe=SGD(0.05, l2_sp=0.5), name="first")
    for step, batch in enumerate(stream().batches(0, 9)):
        t.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "saved", 9, t.snapshot(9)))
    second = network()
    with torch.no_grad():  # a resumed run has not read the weights that the first one started from
        for parameter in second.parameters().values():
            parameter.add_(1.0)
    u = trial(tmp_path, second, LpFt(0.5), recipe=SGD(0.05, l2_sp=0.5), name="second")
    go([u], first=u.restore(saved))
    assert same(weights(whole), weights(second))


def test_augmented_views_are_the_same_in_a_cache_as_in_the_stream() -> None:
    data = stream(augment=Augment(flip=True, crop_padding=1, views=2))
    rows = torch.cat(list(data.unique_inputs(7)))
    assert len(rows) == 2 * 40
    for plain, own in zip(data.batches(3, 18), data.rows(3, 18), strict=True):
        kept = data.labelled(rows[own.at], own)
        assert torch.equal(plain.inputs, kept.inputs) and torch.equal(plain.targets, kept.targets)
        assert torch.equal(plain.ids, kept.ids)
