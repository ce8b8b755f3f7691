"""LoRA against its definition, against PEFT, and through a whole run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hydratune.core.types import Backbone, Batch, LayerGroup, Phase
from hydratune.engine.trial import Trial
from hydratune.freeze.lora import A, LoRA, is_adapter, merged, save_adapter
from hydratune.freeze.phases import checked
from hydratune.freeze.report import trains
from hydratune.models.network import Network, build_network
from hydratune.models.vision.torchvision_models import torchvision_model
from hydratune.optim.optimizers import SGD, AdamW, Muon, Torch
from hydratune.optim.schedules import Cosine
from hydratune.record import checkpoint
from tests.tiny import go, network, same, stream, trial, weights


def layers() -> nn.Module:
    """Linear and convolutions with stride, groups, bias and without."""
    torch.manual_seed(0)
    source = nn.Module()
    source.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    source.grouped = nn.Conv2d(8, 8, 3, groups=4, bias=False)
    source.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
    source.linear = nn.Linear(128, 6, bias=False)
    return source


def built(source: nn.Module, strategy: LoRA | None = None) -> Network:
    body = nn.Sequential(source.grouped, nn.Tanh(), source.depthwise, nn.Flatten(), source.linear)
    net = build_network(Backbone(source, [("first", source.first), ("rest", body)], head_name="fc"), nn.Linear(6, 3))
    return net if strategy is None else Network(strategy.adapt(net.groups))


def shaken(net: Network) -> Network:
    """With updates that are not zero, as after training."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.parameters().items():
            if is_adapter(name):
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.1)
    return net


def test_an_untrained_update_changes_nothing_and_names_stay() -> None:
    plain, adapted = built(layers()), built(layers(), LoRA(rank=2))
    x = torch.randn(4, 3, 11, 11)
    assert torch.equal(plain.forward(x), adapted.forward(x))
    own = {n for n in adapted.state_dict() if not is_adapter(n)}
    assert own == set(plain.state_dict())
    assert {n for n in adapted.parameters() if n.endswith(A)} == {
        f"{layer}{A}" for layer in ("first", "grouped", "depthwise", "linear")
    }
    (phase,) = LoRA(rank=2).phases(adapted.groups, 5)
    assert phase.trainable == {n for n in adapted.parameters() if is_adapter(n) or n.startswith("fc.")}


def test_merged_weights_give_the_same_outputs() -> None:
    adapted = shaken(built(layers(), LoRA(rank=2, alpha=3.0)))
    plain = built(layers())
    x = torch.randn(4, 3, 11, 11)
    assert not torch.allclose(plain.forward(x), adapted.forward(x), atol=1e-2)
    plain.load(merged(adapted.state_dict()))
    assert torch.allclose(plain.forward(x), adapted.forward(x), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "convnext_tiny"])
def test_every_family_takes_updates(name: str) -> None:
    torch.manual_seed(0)
    body = torchvision_model(name, input_shape=(3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    features = x
    for _, module in body.groups:
        features = module.eval()(features)
    net = build_network(body, nn.Linear(features.shape[1], 5))
    plain = net.forward(x)
    adapted = Network(LoRA(rank=4).adapt(net.groups))
    assert torch.allclose(plain, adapted.forward(x), atol=1e-5)
    with torch.no_grad():
        changed = shaken(adapted).forward(x)
    adapters = [n for n in adapted.parameters() if n.endswith(A)]
    assert not torch.allclose(plain, changed, atol=1e-3) and len(adapters) > 15
    if name == "vit_b_16":  # attention's own projections too
        assert any("self_attention.lora_A" in n for n in adapters) and any("out_proj.lora_A" in n for n in adapters)
    kept = merged(adapted.state_dict())
    base = build_network(torchvision_model(name, input_shape=(3, 32, 32)), nn.Linear(features.shape[1], 5))
    base.load(kept)
    for group in base.groups:
        group.module.eval()
    assert torch.allclose(base.forward(x), changed, atol=1e-4, rtol=1e-4)


def test_targets_choose_layers_and_a_wrong_one_lists_them() -> None:
    adapted = built(layers(), LoRA(rank=2, targets=["^grouped$", "lin"]))
    assert {n.removesuffix(A) for n in adapted.parameters() if n.endswith(A)} == {"grouped", "linear"}
    with pytest.raises(ValueError, match=r"freeze\.targets=conv9 matches no layer\. Layers: first, grouped"):
        built(layers(), LoRA(targets=["conv9"]))


def test_only_updates_and_head_train_and_frozen_norms_stand_still(tmp_path: Path) -> None:
    net = network()
    before = weights(net)
    adapted = Network(LoRA(rank=2).adapt(net.groups))
    t = trial(tmp_path, adapted, LoRA(rank=2))
    go([t])
    after = weights(adapted)
    moved = {n for n in after if n not in before or not torch.equal(after[n], before[n])}
    assert moved - {n for n in moved if is_adapter(n)} == {"head.weight", "head.bias"}
    assert all(after[n].abs().sum() > 0 for n in after if n.endswith("lora_B.weight"))


def test_a_run_with_updates_resumes(tmp_path: Path) -> None:
    def made() -> Network:
        torch.manual_seed(3)
        return Network(LoRA(rank=2).adapt(network(dropout=0.2).groups))

    whole, first, second = made(), made(), made()
    go([trial(tmp_path, whole, LoRA(rank=2), name="whole")])
    t = trial(tmp_path, first, LoRA(rank=2), name="first")
    for step, batch in enumerate(stream().batches(0, 5)):
        t.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "saved", 5, t.snapshot(5)))
    u = trial(tmp_path, second, LoRA(rank=2), name="second")
    go([u], first=u.restore(saved))
    assert same(weights(whole), weights(second))


def test_layers_that_are_called_never_form_the_whole_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that reads a weight has the sum; a Linear or Conv2d that is called does without."""
    from transformers.pytorch_utils import Conv1D

    from hydratune.freeze.lora import LowRank

    source = nn.Module()
    source.conv, source.linear, source.turned = (
        nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"),
        nn.Linear(4, 5),
        Conv1D(6, 5),
    )
    names = {n: n for n, _ in source.named_parameters()}
    (group, _) = LoRA(rank=2).adapt([LayerGroup("body", source, names), LayerGroup("head", nn.Identity(), {})])
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if is_adapter(group.names[name]):
                parameter.normal_(std=0.1)
    x, rows = torch.randn(2, 3, 7, 7), torch.randn(2, 4)
    given = ((source.conv, x), (source.linear, rows), (source.turned, torch.randn(2, 5)))
    summed = []
    for module, inputs in given:  # as the source's layer computes with the sum
        plain = copy.deepcopy(module)
        torch.nn.utils.parametrize.remove_parametrizations(plain, "weight")
        summed.append(type(plain).forward(plain, inputs))
    monkeypatch.setattr(LowRank, "forward", lambda self, weight: pytest.fail("the sum was formed"))
    for (module, inputs), expected in zip(given, summed, strict=True):
        assert torch.allclose(module(inputs), expected, atol=1e-5)


def test_a_rank_stabilised_scale() -> None:
    assert LoRA(rank=16, alpha=8).scale == 0.5 and LoRA(rank=16, alpha=8, rank_stabilized=True).scale == 2.0


# ---- LoRA+


@pytest.mark.parametrize(
    "recipe",
    [SGD(0.02, momentum=0.9, nesterov=True), AdamW(0.02), Torch("Adagrad", 0.02), Torch("Adafactor", 0.02), "muon"],
    ids=["sgd", "adamw", "adagrad", "adafactor", "muon"],
)
def test_b_has_its_own_rate_with_every_optimizer_schedule_and_layer_decay(tmp_path: Path, recipe: Any) -> None:
    if recipe == "muon":
        pytest.importorskip("timm")
        recipe = Muon(0.02)
    recipe.layer_decay = 0.5
    strategy = LoRA(rank=2, loraplus_lr_ratio=16)
    schedule, net = Cosine(warmup_steps=2), Network(strategy.adapt(network().groups))
    t = trial(tmp_path, net, strategy, steps=6, recipe=recipe, schedule=schedule)
    t.phases = (replace(t.phases[0], lr_scale=0.25),)
    before = weights(net)
    for step, batch in enumerate(stream().batches(0, 5)):
        t.step(step, batch.inputs, batch, 0)
        rate = {n: g["lr"] for g in t.optimizer.param_groups for n in g["names"]}
        own = 0.02 * 0.25 * schedule.factor(step, 6)
        assert rate["middle.lora_A.weight"] == pytest.approx(own * 0.5) and rate["head.weight"] == pytest.approx(own)
        assert rate["middle.lora_B.weight"] == pytest.approx(own * 8)
    assert t.rates() == {
        "stem": rate["stem.lora_A.weight"], "stem_x16": rate["stem.lora_B.weight"],
        "middle": rate["middle.lora_A.weight"], "middle_x16": rate["middle.lora_B.weight"],
        "head": rate["head.weight"],
    }  # fmt: skip
    moved = {n for n, w in weights(net).items() if not torch.equal(w, before[n])}
    assert moved == set(t.phases[0].trainable)


def test_the_table_shows_bs_rate() -> None:
    strategy = LoRA(rank=2, loraplus_lr_ratio=16)
    net = Network(strategy.adapt(network().groups))
    ((*_, rate, _, _),) = trains(net.groups, strategy.phases(net.groups, 6))
    assert rate == "x 1, lora_B.weight x 16"


def test_a_ratio_of_what_does_not_train_is_refused() -> None:
    net = network()
    for ratios in ({"stem.weight": 2.0}, {"head.weight": 0.0}):
        phase = Phase(0, 5, frozenset({"head.weight"}), cut=2, name="head", lr_ratios=ratios)
        with pytest.raises(ValueError, match=f"lr_ratios of {next(iter(ratios))}"):
            checked([phase], net.groups, 5)
    with pytest.raises(ValueError, match="freeze.loraplus_lr_ratio=0"):
        LoRA(loraplus_lr_ratio=0)


def test_a_ratio_is_another_configuration_and_resumes(tmp_path: Path) -> None:
    def made(name: str, ratio: float) -> tuple[Network, Trial]:
        torch.manual_seed(3)
        strategy = LoRA(rank=2, loraplus_lr_ratio=ratio)
        net = Network(strategy.adapt(network().groups))
        return net, trial(tmp_path, net, strategy, recipe=AdamW(0.01), name=name)

    (plain, p), (whole, t), (_, u), (rest, v) = (
        made(*m) for m in (("plain", 1), ("whole", 4), ("half", 4), ("rest", 4))
    )
    for one in (p, t):
        go([one])
    assert not torch.equal(plain.parameters()["stem.lora_B.weight"], whole.parameters()["stem.lora_B.weight"])
    for step, batch in enumerate(stream().batches(0, 5)):
        u.step(step, batch.inputs, batch, 0)
    saved = checkpoint.load(checkpoint.save(tmp_path / "saved", 5, u.snapshot(5)))
    go([v], first=v.restore(saved))
    assert same(weights(whole), weights(rest))


# ---- PEFT


class Plain(nn.Module):
    """The same layers as PEFT wants them: one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8 * 6 * 6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.linear(self.first(x).flatten(1)))


def ours_of(plain: Plain) -> Network:
    body = nn.Sequential(nn.Flatten(), plain.linear)
    return build_network(Backbone(plain, [("first", plain.first), ("rest", body)], head_name="fc"), plain.fc)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_peft_from_the_same_start_and_through_training() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    theirs_base, ours_base = Plain(), Plain()
    ours_base.load_state_dict(theirs_base.state_dict())
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["first", "linear"], modules_to_save=["fc"])
    theirs = peft.get_peft_model(theirs_base, config)
    ours = Network(LoRA(rank=2, alpha=6.0).adapt(ours_of(ours_base).groups))
    start = {n.replace(".default", ""): p for n, p in theirs.named_parameters() if "lora_" in n}
    with torch.no_grad():
        for name, parameter in ours.parameters().items():
            if is_adapter(name):
                parameter.copy_(start[f"base_model.model.{name}"].view(parameter.shape))
    (phase,) = LoRA(rank=2).phases(ours.groups, 1)
    trained = [p.requires_grad_(n in phase.trainable) for n, p in ours.parameters().items()]
    optimizers = [torch.optim.SGD([p for p in ps if p.requires_grad], lr=0.1) for ps in (trained, theirs.parameters())]
    x, y = torch.randn(8, 3, 11, 11), torch.randint(0, 3, (8,))
    for _ in range(5):
        outputs = [ours.forward(x), theirs(x)]
        assert torch.allclose(*outputs, atol=1e-6)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(output, y).backward()
            optimizer.step()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [SGD(0.01, momentum=0.9), AdamW(0.01, weight_decay=0.0)], ids=["sgd", "adamw"])
def test_equal_to_pefts_loraplus(tmp_path: Path, recipe: Any) -> None:
    """Rates by name, and all weights after a few steps. The head has no bias, which PEFT would train at B's rate."""
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    torch.manual_seed(0)
    theirs_base, ours_base = Plain(), Plain()
    theirs_base.fc = ours_base.fc = nn.Linear(6, 3, bias=False)
    ours_base = copy.deepcopy(theirs_base)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["first", "linear"], modules_to_save=["fc"])
    theirs = peft.get_peft_model(theirs_base, config)
    strategy = LoRA(rank=2, alpha=6.0, loraplus_lr_ratio=16)
    ours = Network(strategy.adapt(ours_of(ours_base).groups))

    def own(name: str) -> str:
        return name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")

    start = {own(n): p for n, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in ours.parameters().items():
            if is_adapter(name):
                parameter.copy_(start[name].view(parameter.shape))
    t = trial(tmp_path, ours, strategy, steps=9, recipe=recipe)
    more = {"momentum": 0.9} if isinstance(recipe, SGD) else {}
    optimizer = create_loraplus_optimizer(theirs, recipe.optimizer_class(), lr=0.01, loraplus_lr_ratio=16, **more)
    named = {id(p): own(n) for n, p in theirs.named_parameters()}
    expected = {named[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    ids, y = torch.arange(8), torch.randint(0, 3, (8,))
    for step in range(5):
        x = torch.randn(8, 3, 11, 11)
        t.step(step, x, Batch(x, y, ids), 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    assert {n: g["lr"] for g in t.optimizer.param_groups for n in g["names"] if n in expected} == expected
    for name, parameter in start.items():
        assert torch.allclose(ours.parameters()[name], parameter.view(ours.parameters()[name].shape), atol=1e-6), name


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_our_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, plain = Plain(), Plain()
    plain.load_state_dict(base.state_dict())
    ours = shaken(Network(LoRA(rank=2, alpha=6.0).adapt(ours_of(base).groups)))
    with torch.no_grad():
        ours.parameters()["fc.bias"].add_(1.0)
    save_adapter(tmp_path / "adapter", ours.state_dict(), ["fc"])
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    x = torch.randn(8, 3, 11, 11)
    assert torch.allclose(ours.forward(x), theirs(x), atol=1e-6)


# ---- a whole run


def test_a_lora_run_exports_and_can_be_trained_on_from(tmp_path: Path, run: Callable[..., Any]) -> None:
    more = ["model=resnet9_w16", "dataset=shapes10", "engine.eval_every=3", "test=false"]
    run("stage=pretrain", *more, "steps=6", directory=tmp_path / "base")
    lora = ["freeze=lora", "freeze.rank=2", f"init_from={tmp_path}/base/run", "optimizer.lr=0.1"]
    run("stage=finetune", *more, "steps=6", *lora, directory=tmp_path / "lora")
    done = tmp_path / "lora" / "run"
    assert json.loads((done / "adapter" / "adapter_config.json").read_text())["r"] == 2
    plain = load_file(done / "merged.safetensors")
    base = next((tmp_path / "base/run/checkpoints").glob("*/model.safetensors"))
    assert plain.keys() == load_file(base).keys()
    assert not torch.equal(plain["stem.0.weight"], load_file(base)["stem.0.weight"])
    ends = []
    for name, origin in (("run", done), ("file", done / "merged.safetensors")):
        run("stage=finetune", *more, "steps=1", "freeze=none", f"init_from={origin}", directory=tmp_path / name)
        ends.append(load_file(tmp_path / name / "run/checkpoints/step-00000001/model.safetensors"))
    assert same(*ends)
