"""Networks: names and outputs of the model they came from, initialisation, loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hydratune.core.types import Backbone
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.load_weights import InitRules, load_into, read_tensors
from hydratune.models.network import Network, as_body, build_network
from hydratune.models.vision.simple_cnn import mlp, simple_cnn
from hydratune.models.vision.small_resnet import small_resnet
from hydratune.models.vision.torchvision_models import torchvision_model

SMALL, LARGE = (3, 32, 32), (3, 224, 224)


def network_of(body: Backbone, classes: int = 10, shape: tuple[int, int, int] = SMALL) -> Network:
    features = torch.zeros(2, *shape)
    with torch.no_grad():
        for _, module in body.groups:
            features = module.eval()(features)
    return build_network(body, nn.Linear(features.shape[1], classes))


def test_simple_cnn_is_the_articles() -> None:
    network = network_of(simple_cnn())
    shapes = {n: list(t.shape) for n, t in network.state_dict().items()}
    assert shapes == {"conv1.weight": [32, 3, 3, 3], "conv1.bias": [32], "fc.weight": [10, 32768], "fc.bias": [10]}
    x = torch.randn(4, 3, 32, 32)
    t = network.state_dict()
    hidden = torch.relu(nn.functional.conv2d(x, t["conv1.weight"], t["conv1.bias"], padding=1)).flatten(1)
    assert torch.equal(network.forward(x), nn.functional.linear(hidden, t["fc.weight"], t["fc.bias"]))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_small_resnets_have_the_papers_size(depth: int, millions: float) -> None:
    """He et al. 2015, table 6."""
    network = network_of(small_resnet(depth))
    assert round(sum(p.numel() for p in network.parameters().values()) / 1e6, 2) == millions
    assert network.forward(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_small_resnet_refuses_other_depths() -> None:
    with pytest.raises(ValueError, match=r"model.depth=21: must be 6n\+2"):
        small_resnet(21)


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "vit_b_16", "convnext_tiny", "mobilenet_v3_small", "squeezenet1_1"]
)
def test_cut_networks_equal_the_whole_model(name: str) -> None:
    """Same names, same numbers as torchvision's own model with the same weights."""
    from torchvision.models import get_model

    if name == "squeezenet1_1":  # it ends in a 1x1 convolution: a Linear takes its place
        body = torchvision_model(name, input_shape=LARGE)
        assert body.head_name == "classifier.1" and network_of(body, 7, LARGE).forward(
            torch.zeros(2, *LARGE)
        ).shape == (2, 7)
        return
    whole = get_model(name).eval()
    network = network_of(torchvision_model(name, small_images=False, input_shape=LARGE), 1000, LARGE)
    assert network.state_dict().keys() == whole.state_dict().keys()
    network.load(whole.state_dict())
    for group in network.groups:
        group.module.eval()
    x = torch.randn(2, *LARGE)
    with torch.no_grad():
        assert torch.allclose(network.forward(x), whole(x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("resnet18", 6), ("resnet50", 6), ("vgg11", 6), ("vgg16", 6), ("vit_b_16", 14), ("convnext_tiny", 6)],
)
def test_small_image_networks_run_at_32_pixels(name: str, groups: int) -> None:
    network = network_of(torchvision_model(name, input_shape=SMALL))
    assert len(network.groups) == groups and network.groups[-1].name == "head"
    assert network.forward(torch.zeros(2, *SMALL)).shape == (2, 10)


def test_split_composes() -> None:
    network = network_of(small_resnet(20))
    for group in network.groups:
        group.module.eval()
    x = torch.randn(3, *SMALL)
    for cut in range(len(network.groups) + 1):
        trunk, tail = network.split(cut)
        assert torch.equal(tail.forward(trunk.forward(x)), network.forward(x))


def test_a_tied_tensor_is_saved_once_and_belongs_to_its_first_user() -> None:
    from hydratune.core.layer_groups import parameter_names

    source = nn.Module()
    source.a, source.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    source.b.weight = source.a.weight
    network = build_network(Backbone(source, [("one", source.a), ("two", source.b)]), nn.Linear(8, 2))
    assert sorted(network.state_dict()) == ["a.weight", "head.bias", "head.weight"]
    assert parameter_names(network.groups) == [["a.weight"], [], ["head.weight", "head.bias"]]


def test_a_users_module_is_one_group_or_its_own() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
    assert [name for name, _ in as_body(plain).groups] == ["body"]

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Flatten()

        def layer_groups(self) -> list[tuple[str, nn.Module]]:
            return [("first", self.first), ("second", self.second)]

    network = network_of(as_body(Mine()))
    assert [g.name for g in network.groups] == ["first", "second", "head"]
    assert "first.weight" in network.state_dict()


# ---- initialisation


def built(seed: int, depth: int = 20) -> dict[str, torch.Tensor]:
    body = initialised(seed, lambda: small_resnet(depth), lambda b: b.source.named_parameters())
    return {n: p.detach().clone() for n, p in body.source.named_parameters()}


def test_initialisation_is_a_function_of_seed_and_name() -> None:
    torch.manual_seed(1)
    one = built(3)
    torch.manual_seed(2)
    torch.rand(7)
    two = built(3)
    assert all(torch.equal(one[n], two[n]) for n in one)
    deeper = built(3, 32)  # other layers before it do not change a layer
    assert torch.equal(one["layer1.0.conv1.weight"], deeper["layer1.0.conv1.weight"])
    assert torch.equal(one["layer3.0.conv1.weight"], deeper["layer3.0.conv1.weight"])
    other = built(4)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_initialisation_keeps_the_models_scheme() -> None:
    weight = built(0)["layer3.1.conv1.weight"]
    assert abs(float(weight.std()) / (2 / (64 * 9)) ** 0.5 - 1) < 0.02  # kaiming_normal, fan in
    assert float(built(0)["bn1.weight"].min()) == 1.0
    head = initialised(0, lambda: nn.Linear(64, 10), named_tensors("fc."))
    assert 0.9 / 8 < float(head.weight.detach().abs().max()) <= 1 / 8  # uniform within 1/sqrt(64)


def test_initialisation_leaves_the_default_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    built(0)
    assert torch.equal(torch.rand(3), expected)


# ---- loading


def load(network: Network, tensors: dict[str, torch.Tensor], share: float = 1.0) -> object:
    return load_into(network.state_dict(), set(network.head.names.values()), tensors, "a file", InitRules(share=share))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "module.model."])
def test_foreign_state_dicts_load_whatever_their_prefix(prefix: str) -> None:
    source, target = network_of(small_resnet(20)), network_of(small_resnet(20), classes=7)
    report = load(target, {prefix + n: t.clone() for n, t in source.state_dict().items()})
    assert report.trunk_share == 1.0
    assert set(report.initialised) == {"fc.weight", "fc.bias"} and "shape [10, 64]" in report.skipped["fc.weight"]
    trunk = [n for n in target.state_dict() if not n.startswith("fc.")]
    assert all(torch.equal(target.state_dict()[n], source.state_dict()[n]) for n in trunk)


def test_torchvisions_own_state_dict_loads() -> None:
    from torchvision.models import resnet18

    network = network_of(torchvision_model("resnet18", small_images=False, input_shape=LARGE), 5, LARGE)
    assert load(network, resnet18().state_dict()).trunk_share == 1.0


def test_a_mismatch_fails_and_lists_what_did_not_match() -> None:
    network = network_of(small_resnet(32))
    tensors = dict(network_of(small_resnet(20)).state_dict())
    with pytest.raises(ValueError, match=r"only 5\d\.\d% of the trunk.*layer1\.3\.conv1\.weight \(not in the source\)"):
        load(network, tensors)
    assert load(network, tensors, share=0.5).trunk_share > 0.5


def test_state_dicts_without_batchnorms_counter_load() -> None:
    """torchvision's older files have none."""
    network = network_of(small_resnet(20))
    tensors = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert load(network, tensors).trunk_share == 1.0


def test_vit_takes_any_small_size_and_refuses_a_large_one_that_does_not_divide() -> None:
    assert network_of(torchvision_model("vit_b_16", input_shape=(3, 28, 28)), shape=(3, 28, 28))
    with pytest.raises(ValueError, match="200 px is no multiple of its patches' 16"):
        torchvision_model("vit_b_16", input_shape=(3, 200, 200))
    with pytest.raises(ValueError, match="model.dropout=0.1: resnet18 has no such option"):
        torchvision_model("resnet18", dropout=0.1, input_shape=SMALL)


def test_values_that_are_not_finite_are_refused() -> None:
    network = network_of(simple_cnn())
    tensors = {n: t.clone() for n, t in network.state_dict().items()}
    tensors["conv1.bias"][3] = float("nan")
    with pytest.raises(ValueError, match="conv1.bias holds NaN"):
        load(network, tensors)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("canary",)


def test_weights_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        assert torch.equal(read_tensors(tmp_path / name)["a"], tensors["a"])
    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="not a plain state dict"):
        read_tensors(tmp_path / "bomb.pt")
    assert not (tmp_path / "canary").exists()
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.pt"):
        read_tensors(tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no weights file"):
        read_tensors(tmp_path / "absent.pt")


def test_mlp_takes_any_number_of_channels() -> None:
    body = mlp((64, 128, 64), input_shape=(1, 28, 28))
    network = network_of(body, shape=(1, 28, 28))
    assert body.in_channels is None and network.forward(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_offline_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from urllib.error import URLError

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    body = torchvision_model("resnet18", weights="DEFAULT", input_shape=LARGE)
    assert body.weights is not None
    with pytest.raises(ValueError, match="could not download https://.*resnet18.*or give its path as model.weights"):
        body.weights()
