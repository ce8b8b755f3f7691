"""Weights of other libraries: read without executing anything, renamed, and brought to the images they will see."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydratune.core.types import Normalisation
from hydratune.models.families import CAFFE, HALF
from hydratune.models.foreign import read_weights
from hydratune.models.formats import read_foreign
from tests.conftest import hydratune

h5py = pytest.importorskip("h5py")
msgpack = pytest.importorskip("msgpack")
timm = pytest.importorskip("timm")

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def keras_order(weight: Tensor) -> Any:
    """OIHW -> HWIO, OI -> IO, as numpy."""
    return (weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T if weight.ndim == 2 else weight).numpy()


# ---- BiT and ViT, against timm's own readers


def small_bit() -> Any:
    from timm.models.resnetv2 import ResNetV2

    torch.manual_seed(0)
    return ResNetV2(layers=(2, 1, 1, 1), channels=(128, 128, 128, 128), stem_chs=32, num_classes=10, stem_type="fixed")


def bit_npz(path: Path, model: Any) -> Path:
    """In the layout of google-research/big_transfer."""
    arrays = {"resnet/root_block/standardized_conv2d/kernel": keras_order(model.stem.conv.weight.detach())}
    for norm, where in ((model.norm, "resnet/group_norm"),):
        arrays |= {f"{where}/gamma": norm.weight.detach().numpy(), f"{where}/beta": norm.bias.detach().numpy()}
    arrays["resnet/head/conv2d/kernel"] = keras_order(model.head.fc.weight.detach())
    arrays["resnet/head/conv2d/bias"] = model.head.fc.bias.detach().numpy()
    for i, stage in enumerate(model.stages, start=1):
        for j, block in enumerate(stage.blocks, start=1):
            where = f"resnet/block{i}/unit{j:02d}"
            for part, number in zip("abc", (1, 2, 3), strict=True):
                conv, norm = getattr(block, f"conv{number}"), getattr(block, f"norm{number}")
                arrays[f"{where}/{part}/standardized_conv2d/kernel"] = keras_order(conv.weight.detach())
                arrays[f"{where}/{part}/group_norm/gamma"] = norm.weight.detach().numpy()
                arrays[f"{where}/{part}/group_norm/beta"] = norm.bias.detach().numpy()
            if block.downsample is not None:
                kernel = keras_order(block.downsample.conv.weight.detach())
                arrays[f"{where}/a/proj/standardized_conv2d/kernel"] = kernel
    np.savez(path, **arrays)
    return path


@torch.no_grad()
def test_bit_s_file_is_what_timm_reads(tmp_path: Path) -> None:
    model = small_bit()
    for p in model.parameters():
        p.copy_(torch.randn_like(p))
    path = bit_npz(tmp_path / "BiT-M.npz", model)
    other = small_bit()
    other.load_pretrained(str(path))
    tensors, said = read_weights(path)
    third = small_bit()
    third.load_state_dict(tensors)
    images = torch.rand(2, 3, 64, 64)
    assert "BiT" in said
    assert torch.equal(third.eval()(images), other.eval()(images))
    assert torch.equal(third(images), model.eval()(images))


def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=10, class_token=True)


def vit_npz(path: Path, model: Any) -> Path:
    """In the layout of google-research/vision_transformer."""
    heads = model.blocks[0].attn.num_heads
    own = {name: p.detach() for name, p in model.named_parameters()}
    arrays: dict[str, Any] = {
        "embedding/kernel": keras_order(own["patch_embed.proj.weight"]), "embedding/bias": own["patch_embed.proj.bias"],
        "cls": own["cls_token"], "Transformer/posembed_input/pos_embedding": own["pos_embed"],
        "Transformer/encoder_norm/scale": own["norm.weight"], "Transformer/encoder_norm/bias": own["norm.bias"],
        "head/kernel": keras_order(own["head.weight"]), "head/bias": own["head.bias"],
    }  # fmt: skip
    for i in range(len(model.blocks)):
        b, where = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        d = own[f"{b}attn.proj.weight"].shape[0]
        for k, part in enumerate(("query", "key", "value")):
            rows = slice(k * d, (k + 1) * d)
            arrays[f"{where}MultiHeadDotProductAttention_1/{part}/kernel"] = (
                own[f"{b}attn.qkv.weight"][rows].T.reshape(d, heads, d // heads)
            )  # fmt: skip
            arrays[f"{where}MultiHeadDotProductAttention_1/{part}/bias"] = (
                own[f"{b}attn.qkv.bias"][rows].reshape(heads, d // heads)
            )  # fmt: skip
        out = own[f"{b}attn.proj.weight"].T.reshape(heads, d // heads, d)
        arrays[f"{where}MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{where}MultiHeadDotProductAttention_1/out/bias"] = own[f"{b}attn.proj.bias"]
        for norm, number in (("LayerNorm_0", 1), ("LayerNorm_2", 2)):
            arrays[f"{where}{norm}/scale"] = own[f"{b}norm{number}.weight"]
            arrays[f"{where}{norm}/bias"] = own[f"{b}norm{number}.bias"]
        for dense, number in (("Dense_0", 1), ("Dense_1", 2)):
            arrays[f"{where}MlpBlock_3/{dense}/kernel"] = keras_order(own[f"{b}mlp.fc{number}.weight"])
            arrays[f"{where}MlpBlock_3/{dense}/bias"] = own[f"{b}mlp.fc{number}.bias"]
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


@torch.no_grad()
def test_vit_s_file_is_what_timm_reads(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2, img_size=64)
    for p in model.parameters():
        p.copy_(torch.randn_like(p) / 10)
    path = vit_npz(tmp_path / "ViT.npz", model)
    other = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2, img_size=64)
    other.load_pretrained(str(path))
    tensors, said = read_weights(path, ours=IMAGENET)
    third = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2, img_size=64)
    third.load_state_dict(tensors)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(third.eval()(images), other.eval()(images))
    assert torch.equal(third(images), model.eval()(images))
    assert "dataset.mean=[0.5,0.5,0.5] dataset.std=[0.5,0.5,0.5]" in said
    assert "dataset.mean" not in read_weights(path, ours=HALF)[1]


# ---- Keras


def squeezenet_h5(path: Path, seed: int = 0) -> tuple[Path, Any]:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(seed)
    model = squeezenet1_1()
    places = dict(zip((3, 4, 6, 7, 9, 10, 11, 12), range(2, 10), strict=True))
    with h5py.File(path, "w") as file:
        file["conv1/kernel"], file["conv1/bias"] = keras_order(model.features[0].weight.detach()), np.zeros(64, "f4")
        for place, number in places.items():
            for part in ("squeeze", "expand1x1", "expand3x3"):
                layer = getattr(model.features[place], part)
                where = f"fire{number}/{'squeeze1x1' if part == 'squeeze' else part}"
                file[f"{where}/{where}_w"] = keras_order(layer.weight.detach())
                file[f"{where}/{where}_b"] = layer.bias.detach().numpy()
    return path, model


@torch.no_grad()
def test_a_network_that_takes_blue_first_and_0_to_255_is_the_same_on_our_images(tmp_path: Path) -> None:
    """The first convolution is brought to the data's normalisation; without padding that is exact."""
    path, model = squeezenet_h5(tmp_path / "w.h5")
    tensors, said = read_weights(path, ours=IMAGENET)
    own = nn.Module()
    from torchvision.models import squeezenet1_1

    own = squeezenet1_1()
    missing = own.load_state_dict(tensors, strict=False)
    assert missing.missing_keys == ["classifier.1.weight", "classifier.1.bias"] and not missing.unexpected_keys
    pixels = torch.rand(2, 3, 80, 80)
    as_they = pixels.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    ours = (pixels - torch.tensor(IMAGENET.mean).view(1, 3, 1, 1)) / torch.tensor(IMAGENET.std).view(1, 3, 1, 1)
    expected, found = model.features.eval()(as_they), own.features.eval()(ours)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert "features.0 brought to this data's normalisation" in said
    plain, _ = read_weights(path, ours=CAFFE)
    assert torch.equal(plain["features.0.weight"], model.features[0].weight.flip(1))


def test_the_real_file(tmp_path: Path) -> None:
    import os

    path = Path(os.environ.get("HYDRATUNE_DATA", "data")).parent / "weights" / "squeezenet_keras_notop.h5"
    if not path.is_file():
        pytest.skip(f"no weights at {path} (HYDRATUNE_DATA)")
    tensors, said = read_weights(path, ours=IMAGENET)
    from torchvision.models import squeezenet1_1

    own = squeezenet1_1().state_dict()
    assert len(tensors) == 50 and "SqueezeNet" in said
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in own.items() if n.startswith("features")}


@torch.no_grad()
def test_vgg_of_keras(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    model = vgg16()
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    names = [f"block{b}_conv{c}" for b, count in enumerate((2, 2, 3, 3, 3), start=1) for c in range(1, count + 1)]
    with h5py.File(tmp_path / "vgg.weights.h5", "w") as file:
        for name, layer in zip(names, convolutions, strict=True):
            file[f"{name}/{name}/kernel:0"], file[f"{name}/{name}/bias:0"] = (
                keras_order(layer.weight),
                layer.bias.numpy(),
            )
    tensors, _ = read_weights(tmp_path / "vgg.weights.h5")
    own = model.features.state_dict()
    assert len(tensors) == 26
    for name, tensor in tensors.items():
        expected = own[name.removeprefix("features.")]
        assert torch.equal(tensor, expected.flip(1) if name == "features.0.weight" else expected)


def test_a_keras_archive_is_its_weights(tmp_path: Path) -> None:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 3), "f4")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("model.weights.h5", content.getvalue())
        archive.writestr("config.json", '{"class_name": "Lambda", "config": {"function": "os.system"}}')
    tensors, said = read_weights(tmp_path / "m.keras")
    assert tensors["layers.dense.vars.0"].tolist() == [[1, 1, 1], [1, 1, 1]] and "no family" in said


def test_flax_s_msgpack(tmp_path: Path) -> None:
    def packed(array: Any) -> Any:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))

    kernel = np.arange(6, dtype="f4").reshape(2, 3)
    half = msgpack.ExtType(1, msgpack.packb(((2,), "bfloat16", b"\x80\x3f\x00\xc0"), use_bin_type=True))
    content = msgpack.packb({"params": {"dense": {"kernel": packed(kernel)}, "scale": half}}, use_bin_type=True)
    (tmp_path / "m.msgpack").write_bytes(content)
    found = read_foreign(tmp_path / "m.msgpack")
    assert torch.equal(found["params/dense/kernel"], torch.from_numpy(kernel))
    assert found["params/scale"].tolist() == [1.0, -2.0]


# ---- what is refused


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.mkdir, ("canary",)


def object_npz(path: Path) -> None:
    np.savez(path, a=np.array([Evil()], dtype=object))


def bomb_npz(path: Path) -> None:
    """A header that claims much more than there is."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content.getvalue())


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * (300 * 2**20))


def soft_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = h5py.SoftLink("/b")


def external_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/a"] = h5py.ExternalLink("/etc/passwd", "/x")


def external_data(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape=(4,), dtype="u1", external=[("/etc/passwd", 0, 4)])


def virtual_data(path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("a", layout)


def shape_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", shape=(10**12,), dtype="f4", chunks=(1024,))


def circle(path: Path) -> None:
    with h5py.File(path, "w") as file:
        inner = file.create_group("a").create_group("b")
        inner["back"] = file["a"]


def strange_extension(path: Path) -> None:
    path.write_bytes(msgpack.packb({"a": msgpack.ExtType(7, b"x")}))


def pickled_array(path: Path) -> None:
    path.write_bytes(msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}))


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("w.npz", object_npz, "holds pickled objects"),
        ("w.npz", bomb_npz, "claims 4,000,000,000 bytes"),
        ("w.npz", zip_bomb, "it claims"),
        ("w.npz", lambda p: p.write_bytes(b"nothing"), "is no whole .npz file"),
        ("w.h5", soft_link, "a is a SoftLink to something else"),
        ("w.h5", external_link, "group/a is a ExternalLink"),
        ("w.h5", external_data, "takes its numbers from other files"),
        ("w.h5", virtual_data, "takes its numbers from other files"),
        ("w.h5", shape_bomb, "a claims 4,000,000,000,000 bytes"),
        ("w.h5", circle, "leads back"),
        ("w.h5", lambda p: p.write_bytes(b"nothing"), "is no whole .h5 file"),
        ("w.keras", lambda p: p.write_bytes(b"nothing"), "is no whole .keras file"),
        ("w.msgpack", strange_extension, "an extension of kind 7"),
        ("w.msgpack", pickled_array, "pickled objects"),
        ("w.msgpack", lambda p: p.write_bytes(b"\xc1\x00"), "no msgpack of tensors"),
    ],
)
def test_nothing_is_executed_followed_or_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, made: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / name)
    with pytest.raises(ValueError, match=said):
        read_weights(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_a_run_starts_from_a_keras_file(tmp_path: Path) -> None:
    squeezenet_h5(tmp_path / "w.h5")
    done = hydratune(
        "stage=finetune", "model=torchvision", "model.name=squeezenet1_1", "init_from=w.h5", "dataset=shapes10",
        "dataset.train=40", "dataset.val=20", "dataset.test=20", "steps=2", "batch_size=10", "hydra.run.dir=run",
        "test=false", "freeze=head_only", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "100% of the trunk" in said and "features.0 brought to this data's normalisation" in said
    known = json.loads((tmp_path / "run/run.json").read_text())
    assert known["lineage"]["file"].endswith("w.h5")
