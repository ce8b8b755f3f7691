"""What other libraries call the tensors of networks that torchvision and timm have too, and how they lay them out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hydratune.core.types import Normalisation

Tensors = Mapping[str, Tensor]
HALF = Normalisation((0.5,) * 3, (0.5,) * 3)
# Of Caffe's networks, which take pixels from 0 to 255 without their mean: in the order of red, green, blue
CAFFE = Normalisation(tuple(value / 255 for value in (123.68, 116.779, 103.939)), (1 / 255,) * 3)


@dataclass(frozen=True)
class Family:
    """said: what the load report calls it. normalisation: of the images that it was trained on. first: its first
    convolution, where that has no padding or a bias, so that it can be brought to another normalisation.
    """

    said: str
    recognises: Callable[[Tensors], bool]
    renamed: Callable[[Tensors], dict[str, Tensor]]
    normalisation: Normalisation | None = None
    first: str | None = None


def known_family(tensors: Tensors) -> Family | None:
    return next((family for family in FAMILIES if family.recognises(tensors)), None)


def to_normalisation(tensors: Tensors, first: str, theirs: Normalisation, ours: Normalisation) -> dict[str, Tensor]:
    """The same network for images of our normalisation: of (p - m) / s, which it knows, ours is a multiple and a shift.

    Exact, but for what the first convolution's padding stands for: our mean, where it was theirs.
    """
    weight, bias = tensors[f"{first}.weight"].double(), tensors[f"{first}.bias"].double()
    scale, shift = ((torch.tensor(a, dtype=torch.float64)) for a in _affine(theirs, ours))
    moved = bias + (weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))
    own = {f"{first}.weight": (weight * scale.view(1, -1, 1, 1)).float(), f"{first}.bias": moved.float()}
    return {**tensors, **own}


def _affine(theirs: Normalisation, ours: Normalisation) -> tuple[list[float], list[float]]:
    """theirs = scale * ours + shift, per channel."""
    four = zip(theirs.mean, theirs.std, ours.mean, ours.std, strict=True)
    pairs = [(s_ours / s, (m_ours - m) / s) for m, s, m_ours, s_ours in four]
    return [a for a, _ in pairs], [b for _, b in pairs]


def laid_out(array: Tensor) -> Tensor:
    """From TensorFlow's order of dimensions to torch's: HWIO -> OIHW, IO -> OI."""
    return array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array


# ---- BiT (arXiv 1912.11370), as timm's resnetv2 calls it


def _is_bit(tensors: Tensors) -> bool:
    return any(name.endswith("root_block/standardized_conv2d/kernel") for name in tensors)


def _bit(tensors: Tensors) -> dict[str, Tensor]:
    found = {}
    for name, array in tensors.items():
        path = name.removeprefix("resnet/")
        kind = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}.get(path.rpartition("/")[2])
        if kind is None:
            continue
        own = f"{_bit_layer(path)}.{kind}"
        found[own] = array.flatten() if kind == "bias" or "gamma" in path else laid_out(array)
    return {name: t.contiguous() for name, t in found.items()}


def _bit_layer(path: str) -> str:
    if path.startswith("root_block/"):
        return "stem.conv"
    if path.startswith("head/"):
        return "head.fc"
    if path.startswith("group_norm/"):
        return "norm"
    inner = re.fullmatch(r"block(\d+)/unit(\d+)/([abc])/(proj/)?(standardized_conv2d|group_norm)/\w+", path)
    if inner is None:
        return path.replace("/", ".")
    stage, unit, part, projection, kind = inner.groups()
    block = f"stages.{int(stage) - 1}.blocks.{int(unit) - 1}"
    if projection:
        return f"{block}.downsample.conv"
    return f"{block}.{'conv' if kind == 'standardized_conv2d' else 'norm'}{'abc'.index(part) + 1}"


# ---- ViT (arXiv 2010.11929), as timm's vision_transformer calls it


def _is_vit(tensors: Tensors) -> bool:
    return "embedding/kernel" in tensors and any(name.startswith("Transformer/encoderblock_0/") for name in tensors)


def _vit(tensors: Tensors) -> dict[str, Tensor]:
    found = {
        "patch_embed.proj.weight": laid_out(tensors["embedding/kernel"]),
        "patch_embed.proj.bias": tensors["embedding/bias"],
        "cls_token": tensors["cls"],
        "pos_embed": tensors["Transformer/posembed_input/pos_embedding"],
        "norm.weight": tensors["Transformer/encoder_norm/scale"],
        "norm.bias": tensors["Transformer/encoder_norm/bias"],
    }
    if "head/kernel" in tensors:
        found |= {"head.weight": laid_out(tensors["head/kernel"]), "head.bias": tensors["head/bias"]}
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"Transformer/encoderblock_(\d+)/", name))}
    for i in blocks:
        prefix = f"Transformer/encoderblock_{i}/"
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        found |= {f"blocks.{i}.{name}": t for name, t in _vit_block(own).items()}
    return {name: t.contiguous() for name, t in found.items()}


def _vit_block(own: Tensors) -> dict[str, Tensor]:
    attention = next(name.partition("/")[0] for name in own if name.startswith("MultiHeadDotProductAttention"))
    mlp = next(name.partition("/")[0] for name in own if name.startswith("MlpBlock"))
    norms = sorted({name.partition("/")[0] for name in own if name.startswith("LayerNorm")})
    parts = [own[f"{attention}/{part}/kernel"] for part in ("query", "key", "value")]
    biases = [own[f"{attention}/{part}/bias"] for part in ("query", "key", "value")]
    result = {
        "attn.qkv.weight": torch.cat([part.flatten(1).T for part in parts]),  # [D, heads, D / heads]
        "attn.qkv.bias": torch.cat([bias.flatten() for bias in biases]),
        "attn.proj.weight": own[f"{attention}/out/kernel"].permute(2, 0, 1).flatten(1),
        "attn.proj.bias": own[f"{attention}/out/bias"],
    }
    for number, norm in enumerate(norms, start=1):
        result |= {f"norm{number}.weight": own[f"{norm}/scale"], f"norm{number}.bias": own[f"{norm}/bias"]}
    for number in (1, 2):
        dense = f"{mlp}/Dense_{number - 1}"
        result |= {
            f"mlp.fc{number}.weight": laid_out(own[f"{dense}/kernel"]),
            f"mlp.fc{number}.bias": own[f"{dense}/bias"],
        }
    return result


# ---- Keras' applications, as torchvision calls them

FIRES = (3, 4, 6, 7, 9, 10, 11, 12)  # places of squeezenet1_1's modules fire2 to fire9
VGG = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _is_squeezenet(tensors: Tensors) -> bool:
    return any(re.match(r"(?:.*/)?fire9/expand3x3/", name) for name in tensors)


def _squeezenet(tensors: Tensors) -> dict[str, Tensor]:
    found = {}
    for name, array in tensors.items():
        kind = {4: "weight", 1: "bias"}.get(array.ndim)
        fire = re.search(r"fire(\d)/(squeeze1x1|expand1x1|expand3x3)/", name)
        layer = name.partition("/")[0] if fire is None else ""
        if fire is not None:
            part = "squeeze" if fire[2] == "squeeze1x1" else fire[2]
            layer = f"features.{FIRES[int(fire[1]) - 2]}.{part}"
        else:
            layer = {"conv1": "features.0", "conv10": "classifier.1"}.get(layer, layer)
        found[f"{layer}.{kind}"] = laid_out(array)
    return _red_first(found)


def _is_vgg(tensors: Tensors) -> bool:
    return any("block5_conv3" in name for name in tensors) and any("block1_conv1" in name for name in tensors)


def _vgg(tensors: Tensors) -> dict[str, Tensor]:
    layers = VGG[19 if any("block5_conv4" in name for name in tensors) else 16]
    places, at = {}, 0
    for block, count in enumerate(layers, start=1):
        for layer in range(1, count + 1):
            places[f"block{block}_conv{layer}"] = at
            at += 2  # a convolution and a ReLU
        at += 1  # a pooling
    found = {}
    for name, array in tensors.items():
        inner = re.search(r"block\d_conv\d", name)
        if inner is not None:
            found[f"features.{places[inner[0]]}.{'weight' if array.ndim == 4 else 'bias'}"] = laid_out(array)
    return _red_first(found)


def _red_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caffe's networks take blue first."""
    tensors["features.0.weight"] = tensors["features.0.weight"].flip(1)
    return {name: t.contiguous() for name, t in tensors.items()}


# ---- BERT of TensorFlow (arXiv 1810.04805), as transformers' BertFor... call it

BERT = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_weights": "weight", "output_bias": "bias"}
BERT_HEADS = {"": ["classifier"], "cls/squad": ["qa_outputs"]}  # of run_classifier.py and run_squad.py


def _is_bert(tensors: Tensors) -> bool:
    first = "bert/encoder/layer_0/attention/self/query/kernel"  # ALBERT has the same embeddings, and other layers
    return "bert/embeddings/word_embeddings" in tensors and first in tensors


def _bert(tensors: Tensors) -> dict[str, Tensor]:
    found = {}
    for name, array in tensors.items():
        *path, last = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name).split("/")
        if last.startswith("output_"):
            path = BERT_HEADS.get("/".join(path), path)
        last = BERT.get(last, f"{last}.weight" if last.endswith("_embeddings") else last)
        found[".".join([*path, last])] = (laid_out(array) if name.endswith("/kernel") else array).contiguous()
    return found


FAMILIES = (
    Family("BERT's of TensorFlow, under transformers' names", _is_bert, _bert),
    Family("BiT's, under timm's names for resnetv2", _is_bit, _bit, HALF),
    Family("ViT's of JAX, under timm's names", _is_vit, _vit, HALF),
    Family("SqueezeNet's of Keras, under torchvision's names", _is_squeezenet, _squeezenet, CAFFE, "features.0"),
    Family("VGG's of Keras, under torchvision's names", _is_vgg, _vgg, CAFFE, "features.0"),
)
