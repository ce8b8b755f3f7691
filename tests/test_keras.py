"""Keras' applications in timm's networks: in float64, the answers that Keras gave (keras_applications/record.py)."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydratune.models.foreign import normalisation_of, read_weights
from hydratune.models.keras.applications import HALF, IMAGENET
from hydratune.models.vision.timm_models import timm_model
from tests.conftest import hydratune
from tests.keras_applications.values import pixels, usual, value

h5py = pytest.importorskip("h5py")
timm = pytest.importorskip("timm")

HERE = Path(__file__).parent / "keras_applications"
TF = {"pad_type": "same", "bn_eps": 1e-3}
# Keras' application -> timm's network
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"DenseNet{n}": (f"densenet{n}", {}) for n in (121, 169, 201)},
    **{f"EfficientNetB{n}": (f"tf_efficientnet_b{n}", {}) for n in range(8)},
    **{f"EfficientNetB0-{kind}": ("tf_efficientnet_b0", {}) for kind in ("published", "notop")},
    **{f"EfficientNetV2{n}": (f"tf_efficientnetv2_{n.lower()}", {}) for n in ("B0", "B1", "B2", "B3", "S", "M", "L")},
    **{f"ConvNeXt{n}": (f"convnext_{n.lower()}", {}) for n in ("Tiny", "Small", "Base", "Large")},
    "ConvNeXtTiny-notop": ("convnext_tiny", {}),
    "MobileNet": ("mobilenetv1_100", TF),
    **{f"MobileNetV2-{n}": (f"mobilenetv2_{int(100 * n):03d}", TF) for n in (0.35, 0.5, 0.75, 1.0, 1.4)},
    **{f"MobileNetV3{n}-1.0": (f"tf_mobilenetv3_{n.lower()}_100", {}) for n in ("Small", "Large")},
    **{f"MobileNetV3{n}-1.0-minimal": (f"tf_mobilenetv3_{n.lower()}_minimal_100", {}) for n in ("Small", "Large")},
    **{f"MobileNetV3{n}-0.75": (f"tf_mobilenetv3_{n.lower()}_075", {}) for n in ("Small", "Large")},
}
QUICK = ["DenseNet121", "EfficientNetB0", "EfficientNetB0-notop", "EfficientNetV2B0", "ConvNeXtTiny-notop", "MobileNet",
         "MobileNetV2-0.35", "MobileNetV3Small-1.0", "MobileNetV3Small-1.0-minimal"]  # fmt: skip
WAYS = ("h5", "older h5", "named", "counted")  # a file's three ways to call a layer, and names of Keras 2


@cache
def recorded() -> Mapping[str, Any]:
    return dict(json.loads(gzip.decompress((HERE / "applications.json.gz").read_bytes())))


def keras_file(path: Path, name: str, way: str = "h5") -> Path:
    """As Keras writes it, with the numbers of values.py."""
    with h5py.File(path, "w") as file:
        for layer, variable, shape, at, counted in recorded()[name]["tensors"]:
            numbers = value(layer, variable, shape, "published" in name)
            if way in ("named", "counted"):
                file[counted] = numbers
                if way == "named":
                    file[counted.rpartition("/")[0]].attrs["name"] = layer
            elif way == "h5":
                file[at or usual(layer, variable)] = numbers
            else:
                older = (at or usual(layer, variable)).removeprefix("model_weights/")
                file[f"{older.replace('/kernel', '/depthwise_kernel') if shape[3:] == [1] else older}:0"] = numbers
        for layer in recorded()[name].get("layers", []):
            file.require_group(f"model_weights/{layer}")
    return path


def network_of(name: str, **options: Any) -> Any:
    """timm's, in float64, with Keras' number of classes."""
    model, own = SAME[name]
    classes = 0 if name.endswith("notop") else 1000 if "published" in name else 7
    return timm.create_model(model, num_classes=classes, **{**own, **options}).double().eval()


@torch.no_grad()
def answers(network: nn.Module, name: str, theirs: Any) -> Tensor:
    """As Keras was asked: of pixels from 0 to 255, brought to what the file says of its images."""
    images = torch.from_numpy(pixels(recorded()[name]["size"])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (theirs.mean, theirs.std))
    found: Tensor = network((images - mean) / std)
    return found[:, :7]


def check(path: Path, name: str) -> None:
    network = network_of(name)
    tensors, said = read_weights(path, network=network)
    assert f"model.name={SAME[name][0]}" in said
    left = network.load_state_dict(tensors, strict=False)
    without_top = {"conv_head.weight", "conv_head.bias"} if name.startswith("MobileNetV3") else set()
    assert not left.unexpected_keys
    assert {key for key in left.missing_keys if "num_batches" not in key} <= (without_top if "notop" in name else set())
    expected = torch.tensor(recorded()[name]["answers"], dtype=torch.float64)
    found = answers(network, name, normalisation_of(path))
    assert float((found - expected).abs().max()) < 1e-10 * float(expected.abs().max()), (found, expected)


@pytest.mark.parametrize("name", QUICK)
def test_the_same_answers(tmp_path: Path, name: str) -> None:
    check(keras_file(tmp_path / "w.h5", name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SAME if name not in QUICK])
def test_the_same_answers_of_all(tmp_path: Path, name: str) -> None:
    check(keras_file(tmp_path / "w.h5", name), name)


# ---- files


@pytest.mark.parametrize(
    "name",
    ["MobileNetV3Small-0.75", "MobileNetV2-0.5", pytest.param("ConvNeXtTiny-notop", marks=pytest.mark.slow)],
)
def test_a_layer_is_the_same_however_the_file_calls_it(tmp_path: Path, name: str) -> None:
    found = []
    for way in WAYS:
        suffix = ".h5" if "h5" in way else ".weights.h5"
        found.append(read_weights(keras_file(tmp_path / f"{way}{suffix}", name, way))[0])
    own = {k for k in network_of(name).state_dict() if "num_batches" not in k}
    assert found[0].keys() == own
    for other in found[1:]:
        assert other.keys() == found[0].keys() and all(torch.equal(other[k], found[0][k]) for k in other)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAME))
def test_the_order_of_layers_is_enough_for_all(tmp_path: Path, name: str) -> None:
    """Files of Keras before 3.5 have numbers alone."""
    named, said = read_weights(keras_file(tmp_path / "w.h5", name))
    counted, also = read_weights(keras_file(tmp_path / "w.weights.h5", name, "counted"))
    assert said == also and counted.keys() == named.keys()
    assert all(torch.equal(counted[k], named[k]) for k in named)


def moved(path: Path, prefix: str, **more: Any) -> Path:
    """The same file with everything below a further group, and more beside it."""
    with h5py.File(path) as file, h5py.File(path.with_name(f"moved-{path.name}"), "w") as other:
        for name in file:
            file.copy(name, other.require_group(prefix) if prefix else other)
        for name, numbers in more.items():
            other[name] = numbers
    return path.with_name(f"moved-{path.name}")


@pytest.mark.parametrize(("way", "prefix"), [("older h5", "mobilenetv2"), ("counted", "layers/functional")])
def test_a_network_in_somebodys_model(tmp_path: Path, way: str, prefix: str) -> None:
    """Their classifier is a Linear for the head; of the optimizer's moments nothing is taken."""
    name = "MobileNetV2-0.35"
    path = keras_file(tmp_path / "w.h5", name, way)
    kernel, bias = np.arange(2560.0).reshape(1280, 2), np.ones(2)
    above = {"dense/dense/kernel:0": kernel, "dense/dense/bias:0": bias} if way == "older h5" else {
        "layers/dense/vars/0": kernel, "layers/dense/vars/1": bias}  # fmt: skip
    moments = {"optimizer_weights/Adam/m/Conv1/kernel:0": np.ones((3, 3, 3, 16)), "optimizer/vars/1": np.ones(3)}
    plain, _ = read_weights(path)
    tensors, said = read_weights(moved(path, prefix, **above, **moments))
    assert "MobileNetV2 (alpha 0.35)" in said and all(torch.equal(tensors[k], plain[k]) for k in plain)
    dense = "dense" if way == "older h5" else "layers.dense"
    assert tensors.keys() - plain.keys() == {f"{dense}.weight", f"{dense}.bias"}
    assert tensors[f"{dense}.weight"].shape == (2, 1280)


def test_two_networks_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", "MobileNet", "older h5")
    with h5py.File(path, "a") as file:
        file["second/conv1/kernel:0"] = np.zeros((3, 3, 3, 32))
    with pytest.raises(ValueError, match=r"conv1/conv1/kernel:0 and second/conv1/kernel:0"):
        read_weights(path)


def test_names_of_groups_are_text_or_none(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.weights.h5", "MobileNet", "counted")
    plain, _ = read_weights(path)
    with h5py.File(path, "a") as file:
        for place, odd in (("conv2d", np.arange(3)), ("batch_normalization", b"bytes"), ("conv2d_1", h5py.Empty("f4"))):
            file[f"layers/{place}/vars"].attrs["name"] = odd
    again, _ = read_weights(path)
    assert again.keys() == plain.keys()


# ---- networks


def test_networks_that_pad_otherwise_are_refused_with_what_to_type(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", "MobileNetV2-0.35")
    typed = r"Type model=timm model.name=mobilenetv2_035 model.pad_type=same model.bn_eps=0.001"
    with pytest.raises(ValueError, match=rf"conv_stem of this network pads on all sides\. {typed}"):
        read_weights(path, network=network_of("MobileNetV2-0.35", pad_type=""))
    with pytest.raises(ValueError, match=rf"an epsilon of 0\.001; that of bn1 is 1e-05 here\. {typed}"):
        read_weights(path, network=network_of("MobileNetV2-0.35", bn_eps=1e-5))
    body = timm_model("mobilenetv2_035", pad_type="same", bn_eps=1e-3, input_shape=(3, 64, 64))
    assert read_weights(path, network=body.source)[1].startswith("Keras' MobileNetV2 (alpha 0.35), for ")
    with pytest.raises(ValueError, match=r"Type model=timm model.name=tf_efficientnet_b0"):
        other = timm_model("efficientnet_b0", input_shape=(3, 64, 64)).source
        read_weights(keras_file(tmp_path / "b0.h5", "EfficientNetB0"), network=other)


def test_what_is_typed_for_padding_is_looked_at() -> None:
    with pytest.raises(ValueError, match=r"model\.pad_type=valid: one of same, symmetric"):
        timm_model("mobilenetv2_035", pad_type="valid", input_shape=(3, 64, 64))
    with pytest.raises(ValueError, match=r"model\.name=densenet121: timm cannot make it with pad_type=same"):
        timm_model("densenet121", pad_type="same", input_shape=(3, 64, 64))
    found = timm_model("tf_efficientnet_b0", pad_type="symmetric", input_shape=(3, 64, 64)).source
    assert found.conv_stem.padding == (1, 1)


def test_densenets_variances_are_moved_for_either_library(tmp_path: Path) -> None:
    from torchvision.models import densenet121

    path = keras_file(tmp_path / "w.h5", "DenseNet121")
    plain, _ = read_weights(path)
    tensors, said = read_weights(path, network=densenet121())
    assert "+1e-08 on each running_var for Keras' epsilon of 1.001e-05" in said
    own = [k for k in plain if k.endswith("running_var")]
    assert len(own) == 121 and all(torch.allclose(tensors[k] - plain[k], torch.tensor(1e-8).double()) for k in own)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ResNet50", "a ResNet of Keras, which neither torchvision nor timm has: its blocks stride in their first 1x1"),
        ("ResNet50V2", "a ResNetV2 of Keras, .*stride in their last block"),
        ("InceptionV3", "InceptionV3 of Keras, .*leave the padding out"),
        ("Xception", "Xception of Keras, .*padded to the right and below"),
        ("NASNetMobile", "NASNet of Keras"),
        ("MobileNet-0.5", "a MobileNet of Keras in a width that timm has no network of"),
        ("MobileNetV2-1.3", "a MobileNetV2 of Keras in a width that timm has no network of"),
    ],
)
def test_networks_that_torch_does_not_have_are_told(tmp_path: Path, name: str, said: str) -> None:
    tensors, words = read_weights(keras_file(tmp_path / "w.h5", f"refused-{name}"))
    assert re.match(said, words) and all("/" not in k for k in tensors)


# ---- images


def test_the_images_that_weights_want(tmp_path: Path) -> None:
    def wanted(name: str) -> Any:
        return normalisation_of(keras_file(tmp_path / "w.h5", name))

    for name in ("EfficientNetB0", "EfficientNetB0-published"):
        found = wanted(name)
        assert found.mean == pytest.approx(IMAGENET.mean) and found.std == pytest.approx(IMAGENET.std)
    assert wanted("MobileNet") == HALF and wanted("ConvNeXtTiny-notop") == IMAGENET
    within = keras_file(tmp_path / "w.h5", "EfficientNetB0", "older h5")
    with h5py.File(within, "a") as file:  # as Keras calls it in the second model of a session
        file.move("normalization/normalization", "normalization_1")
    assert normalisation_of(moved(within, "efficientnetb0")) == wanted("EfficientNetB0")
    assert normalisation_of(tmp_path / "none.h5") is None
    path = keras_file(tmp_path / "w.h5", "MobileNetV3Small-1.0")
    assert (
        "trained on images of dataset.mean=[0.5,0.5,0.5] dataset.std=[0.5,0.5,0.5]"
        in read_weights(path, None, IMAGENET)[1]
    )
    assert "trained on" not in read_weights(path, None, HALF)[1]
    body = timm_model("tf_mobilenetv3_small_100", str(path), input_shape=(3, 64, 64))
    assert body.normalisation == HALF and body.weights is not None and "MobileNetV3Small" in body.weights()[0]


@pytest.mark.slow
def test_a_run_starts_from_keras(tmp_path: Path) -> None:
    keras_file(tmp_path / "w.h5", "MobileNetV2-0.35")
    keras_file(tmp_path / "x.h5", "refused-Xception")
    typed = [
        "stage=finetune", "model=timm", "model.name=mobilenetv2_035", "dataset=shapes10", "dataset.train=40",
        "dataset.val=20", "dataset.test=20", "steps=2", "batch_size=10", "test=false", "freeze=head_only",
    ]  # fmt: skip
    done = hydratune(*typed, "init_from=w.h5", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode != 0 and "Type model=timm model.name=mobilenetv2_035 model.pad_type=same" in done.stderr
    typed += ["model.pad_type=same", "model.bn_eps=0.001"]
    done = hydratune(*typed, "init_from=w.h5", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "100% of the trunk" in said and "Keras' MobileNetV2 (alpha 0.35)" in said and "dataset.mean=[0.5," in said
    done = hydratune(*typed, "init_from=x.h5", "hydra.run.dir=other", cwd=tmp_path)
    assert done.returncode != 0 and "Xception of Keras, which neither torchvision nor timm has" in done.stderr
