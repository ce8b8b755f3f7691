"""Keras' applications that timm has too: every layer with weights, in Keras' order, with timm's name for it.

By name the layers of files are found that say them, by their order those of files that only count them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from hydratune.core.types import Normalisation

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5,) * 3, (0.5,) * 3)  # pixels / 127.5 - 1, which Keras calls mode tf
HALF_OF_256 = Normalisation((128 / 255,) * 3, (128 / 255,) * 3)  # pixels / 128 - 1
CONV, DEPTHWISE, DENSE = "conv2d", "depthwise_conv2d", "dense"
BATCH_NORM, LAYER_NORM, SCALE = "batch_normalization", "layer_normalization", "layer_scale"


class Layer(NamedTuple):
    """kind: Keras' class, as files count it. inside: which of the Sequentials it lies in, as files count those."""

    kind: str
    theirs: str
    ours: str
    inside: int | None = None


@dataclass(frozen=True)
class Application:
    """model: timm's name. optional: layers that a file without its top lacks. width: (layer, its outputs), which tells
    those apart that have the same layers. normalisation: of the images; None where the file says it.
    """

    name: str
    model: str
    layers: tuple[Layer, ...]
    optional: frozenset[str]
    normalisation: Normalisation | None
    eps: float = 1e-3
    same: bool = True  # whether strides are padded as TensorFlow does it: what is odd, to the right and below
    width: tuple[str, int] | None = None
    typed: str = ""  # overrides that timm's own network needs
    remark: str = ""

    @property
    def overrides(self) -> str:
        return f"model=timm model.name={self.model}{self.typed}"


@cache
def applications() -> tuple[Application, ...]:
    return (*_densenets(), *_efficientnets(), *_efficientnets_v2(), *_convnexts(), _mobilenet(), *_mobilenets_v2(),
            *_mobilenets_v3())  # fmt: skip


@cache
def known_layers() -> frozenset[str]:
    return frozenset(layer.theirs for application in applications() for layer in application.layers)


def _normed(conv: str, theirs: str, ours: str, norm: tuple[str, str]) -> list[Layer]:
    """A convolution and its BatchNorm."""
    return [Layer(conv, theirs, ours), Layer(BATCH_NORM, *norm)]


# ---- DenseNet (arXiv 1608.06993)


def _densenets() -> Iterator[Application]:
    for depth, blocks in ((121, (6, 12, 24, 16)), (169, (6, 12, 32, 32)), (201, (6, 12, 48, 32))):
        yield Application(
            f"DenseNet{depth}", f"densenet{depth}", tuple(_densenet(blocks)), frozenset({"predictions"}), IMAGENET,
            eps=1.001e-5, same=False,
        )  # fmt: skip


def _densenet(blocks: Sequence[int]) -> Iterator[Layer]:
    yield from _normed(CONV, "conv1_conv", "features.conv0", ("conv1_bn", "features.norm0"))
    for b, count in enumerate(blocks, start=1):
        for i in range(1, count + 1):
            theirs, ours = f"conv{b + 1}_block{i}", f"features.denseblock{b}.denselayer{i}"
            yield Layer(BATCH_NORM, f"{theirs}_0_bn", f"{ours}.norm1")
            yield from _normed(CONV, f"{theirs}_1_conv", f"{ours}.conv1", (f"{theirs}_1_bn", f"{ours}.norm2"))
            yield Layer(CONV, f"{theirs}_2_conv", f"{ours}.conv2")
        if b < len(blocks):
            yield Layer(BATCH_NORM, f"pool{b + 1}_bn", f"features.transition{b}.norm")
            yield Layer(CONV, f"pool{b + 1}_conv", f"features.transition{b}.conv")
    yield Layer(BATCH_NORM, "bn", "features.norm5")
    yield Layer(DENSE, "predictions", "classifier")


# ---- EfficientNet (arXiv 1905.11946) and EfficientNetV2 (2104.00298)


def _efficientnets() -> Iterator[Application]:
    depths = (1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1)
    widths = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)
    for b, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        stages = [("first" if i == 0 else "mb", math.ceil(depth * n)) for i, n in enumerate((1, 2, 2, 3, 3, 4, 1))]
        layers = tuple(_efficientnet(stages, "dwconv"))
        yield Application(
            f"EfficientNetB{b}", f"tf_efficientnet_b{b}", layers, frozenset({"predictions"}), None,
            width=("top_conv", width),
        )  # fmt: skip


def _efficientnets_v2() -> Iterator[Application]:
    repeats = {"b0": (1, 2, 2, 3, 5, 8), "b1": (2, 3, 3, 4, 6, 9), "b2": (2, 3, 3, 4, 6, 10), "b3": (2, 3, 3, 5, 7, 12),
               "s": (2, 4, 4, 6, 9, 15), "m": (3, 5, 5, 7, 14, 18, 5), "l": (4, 7, 7, 10, 19, 25, 7)}  # fmt: skip
    for size, counts in repeats.items():
        stages = [("plain" if i == 0 else "fused" if i < 3 else "mb", n) for i, n in enumerate(counts)]
        yield Application(
            f"EfficientNetV2{size.upper()}", f"tf_efficientnetv2_{size}", tuple(_efficientnet(stages, "dwconv2")),
            frozenset({"predictions"}), IMAGENET if size[0] == "b" else HALF_OF_256,
        )  # fmt: skip


def _efficientnet(stages: Sequence[tuple[str, int]], depthwise: str) -> Iterator[Layer]:
    yield from _normed(CONV, "stem_conv", "conv_stem", ("stem_bn", "bn1"))
    for stage, (kind, count) in enumerate(stages):
        for i in range(count):
            yield from _mbconv(kind, f"block{stage + 1}{chr(ord('a') + i)}_", f"blocks.{stage}.{i}.", depthwise)
    yield from _normed(CONV, "top_conv", "conv_head", ("top_bn", "bn2"))
    yield Layer(DENSE, "predictions", "classifier")


def _mbconv(kind: str, theirs: str, ours: str, depthwise: str) -> Iterator[Layer]:
    """kind: first (no expansion), mb, fused (a full convolution expands) or plain (it does nothing else)."""
    if kind == "plain":
        yield from _normed(CONV, f"{theirs}project_conv", f"{ours}conv", (f"{theirs}project_bn", f"{ours}bn1"))
        return
    at = 1
    if kind != "first":
        first = f"{ours}{'conv_exp' if kind == 'fused' else 'conv_pw'}"
        yield from _normed(CONV, f"{theirs}expand_conv", first, (f"{theirs}expand_bn", f"{ours}bn1"))
        at = 2
    if kind != "fused":
        yield from _normed(DEPTHWISE, theirs + depthwise, f"{ours}conv_dw", (f"{theirs}bn", f"{ours}bn{at}"))
        yield Layer(CONV, f"{theirs}se_reduce", f"{ours}se.conv_reduce")
        yield Layer(CONV, f"{theirs}se_expand", f"{ours}se.conv_expand")
        at += 1
    last = f"{ours}{'conv_pw' if kind == 'first' else 'conv_pwl'}"
    yield from _normed(CONV, f"{theirs}project_conv", last, (f"{theirs}project_bn", f"{ours}bn{at}"))


# ---- ConvNeXt (arXiv 2201.03545)


def _convnexts() -> Iterator[Application]:
    sizes = {"Tiny": (9, 96), "Small": (27, 96), "Base": (27, 128), "Large": (27, 192), "XLarge": (27, 256)}
    for size, (third, width) in sizes.items():
        yield Application(
            f"ConvNeXt{size}", f"convnext_{size.lower()}", tuple(_convnext((3, 3, third, 3))),
            frozenset({"head_dense"}), IMAGENET, eps=1e-6, same=False, width=("stem_conv", width),
        )  # fmt: skip


def _convnext(depths: Sequence[int]) -> Iterator[Layer]:
    yield Layer(CONV, "stem_conv", "stem.0", 0)
    yield Layer(LAYER_NORM, "stem_layernorm", "stem.1", 0)
    for s, count in enumerate(depths):
        if s:
            yield Layer(LAYER_NORM, f"downsampling_layernorm_{s - 1}", f"stages.{s}.downsample.0", s)
            yield Layer(CONV, f"downsampling_conv_{s - 1}", f"stages.{s}.downsample.1", s)
        for i in range(count):
            theirs, ours = f"stage_{s}_block_{i}_", f"stages.{s}.blocks.{i}."
            yield Layer(CONV, f"{theirs}depthwise_conv", f"{ours}conv_dw")
            yield Layer(LAYER_NORM, f"{theirs}layernorm", f"{ours}norm")
            yield Layer(DENSE, f"{theirs}pointwise_conv_1", f"{ours}mlp.fc1")
            yield Layer(DENSE, f"{theirs}pointwise_conv_2", f"{ours}mlp.fc2")
            yield Layer(SCALE, f"{theirs}layer_scale", f"{ours}gamma")
    yield Layer(LAYER_NORM, "head_layernorm", "head.norm")
    yield Layer(DENSE, "head_dense", "head.fc")


# ---- MobileNet (arXiv 1704.04861), V2 (1801.04381) and V3 (1905.02244)

TF_OPTIONS = " model.pad_type=same model.bn_eps=0.001"


def _places(stages: Sequence[int]) -> list[str]:
    return [f"blocks.{s}.{i}." for s, count in enumerate(stages) for i in range(count)]


def _mobilenet() -> Application:
    layers = _normed(CONV, "conv1", "conv_stem", ("conv1_bn", "bn1"))
    for i, ours in enumerate(_places((1, 2, 2, 6, 2)), start=1):
        layers += _normed(DEPTHWISE, f"conv_dw_{i}", f"{ours}conv_dw", (f"conv_dw_{i}_bn", f"{ours}bn1"))
        layers += _normed(CONV, f"conv_pw_{i}", f"{ours}conv_pw", (f"conv_pw_{i}_bn", f"{ours}bn2"))
    layers.append(Layer(CONV, "conv_preds", "classifier"))
    remark = "its strides are Keras' own for images of multiples of 32 pixels"
    return Application(
        "MobileNet", "mobilenetv1_100", tuple(layers), frozenset({"conv_preds"}), HALF, width=("conv_pw_13", 1024),
        typed=TF_OPTIONS, remark=remark,
    )  # fmt: skip


def _mobilenets_v2() -> Iterator[Application]:
    layers = _normed(CONV, "conv1", "conv_stem", ("bn_conv1", "bn1"))
    for i, ours in enumerate(_places((1, 2, 3, 4, 3, 3, 1))):
        layers += _inverted(f"block_{i}_" if i else "expanded_conv_", ours, expands=i > 0)
    layers += _normed(CONV, "conv_1", "conv_head", ("conv_1_bn", "bn2"))
    layers.append(Layer(DENSE, "predictions", "classifier"))
    for alpha in (35, 50, 75, 100, 140):
        yield Application(
            f"MobileNetV2 (alpha {alpha / 100:g})", f"mobilenetv2_{alpha:03d}", tuple(layers),
            frozenset({"predictions"}), HALF, width=("block_16_project", 320 * alpha // 100), typed=TF_OPTIONS,
        )  # fmt: skip


def _mobilenets_v3() -> Iterator[Application]:
    squeezed = {"small": {0, *range(3, 11)}, "large": {3, 4, 5, *range(10, 15)}}
    for size, stages, width in (("small", (1, 2, 3, 2, 3), 576), ("large", (1, 2, 3, 4, 2, 3), 960)):
        for kind, alpha in (("", 100), ("", 75), ("minimal_", 100)):
            layers = _normed(CONV, "conv", "conv_stem", ("conv_bn", "bn1"))
            for i, ours in enumerate(_places(stages)):
                theirs = f"expanded_conv_{i}_" if i else "expanded_conv_"
                layers += _inverted(theirs, ours, expands=i > 0, squeezes=not kind and i in squeezed[size])
            last = f"blocks.{len(stages)}.0."
            layers += _normed(CONV, "conv_1", f"{last}conv", ("conv_1_bn", f"{last}bn1"))
            layers += [Layer(CONV, "conv_2", "conv_head"), Layer(CONV, "logits", "classifier")]
            yield Application(
                f"MobileNetV3{size.capitalize()} ({'minimalistic' if kind else f'alpha {alpha / 100:g}'})",
                f"tf_mobilenetv3_{size}_{kind}{alpha:03d}", tuple(layers), frozenset({"conv_2", "logits"}), HALF,
                width=("conv_1", width * alpha // 100),
            )  # fmt: skip


def _inverted(theirs: str, ours: str, expands: bool, squeezes: bool = False) -> list[Layer]:
    """An inverted residual block."""
    layers, at = [], 1
    if expands:
        layers += _normed(CONV, f"{theirs}expand", f"{ours}conv_pw", (f"{theirs}expand_bn", f"{ours}bn1"))
        at = 2
    layers += _normed(DEPTHWISE, f"{theirs}depthwise", f"{ours}conv_dw", (f"{theirs}depthwise_bn", f"{ours}bn{at}"))
    if squeezes:
        layers.append(Layer(CONV, f"{theirs}squeeze_excite_conv", f"{ours}se.conv_reduce"))
        layers.append(Layer(CONV, f"{theirs}squeeze_excite_conv_1", f"{ours}se.conv_expand"))
    last = f"{ours}{'conv_pwl' if expands else 'conv_pw'}"
    layers += _normed(CONV, f"{theirs}project", last, (f"{theirs}project_bn", f"{ours}bn{at + 1}"))
    return layers
