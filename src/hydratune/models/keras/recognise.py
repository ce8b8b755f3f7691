"""Which of Keras' applications a file holds, under timm's names and in torch's layout; or why there is none."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hydratune.core.types import Normalisation
from hydratune.models.keras.applications import BATCH_NORM, DEPTHWISE, IMAGENET, SCALE, Application, Layer, applications
from hydratune.models.keras.layers import NORMALIZATION, Layers, Tensors, Variable, counted_layers, named_layers

KINDS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
         "moving_variance": "running_var"}  # fmt: skip
CLOSE = 0.01
PREPROCESSING = rf"{NORMALIZATION}([_/]\d+)?"
# What each is known by -> what it is, and why torch's libraries do not have it
ABSENT = {
    r"conv2_block1_preact_bn": "a ResNetV2 of Keras, {}: its stages stride in their last block, torch's in their first",
    r"conv2_block1_3_conv|res2a_branch2a": (
        "a ResNet of Keras, {}: its blocks stride in their first 1x1 convolution, torch's in the 3x3 one"
    ),
    r"block14_sepconv2": (
        "Xception of Keras, {}: its poolings are padded to the right and below, timm's legacy_xception on all sides"
    ),
    r"conv_7b": "InceptionResNetV2 of Keras, which is not read: its layers have numbers for names",
    r"mixed10": "InceptionV3 of Keras, {}: its average poolings leave the padding out, torch's count it as zeros",
    r"normal_conv_1_\w+|stem_conv1": "NASNet of Keras, which is not read: timm has its large size alone",
}


@dataclass(frozen=True)
class Found:
    """tensors: under timm's names; what belongs to no layer of the application under its own."""

    application: Application
    tensors: dict[str, Tensor]
    normalisation: Normalisation | None


def keras_application(tensors: Tensors, names: Mapping[str, str]) -> Found | None:
    """names: what the groups of the file are called, '' where it does not say it.

    Raises ValueError for a file with two networks of one kind.
    """
    named, twice = named_layers(tensors, names)
    chosen = _chosen(named, {a.name: [layer.theirs for layer in a.layers] for a in applications()})
    if chosen is not None:
        found, keys = chosen
        if doubled := [twice[key] for key in keys if key in twice]:
            raise ValueError(f"holds two networks that are not told apart ({doubled[0]}); save one of them alone")
        return _found(found, keys, named)
    for counted in counted_layers(tensors):
        chosen = _chosen(counted, {a.name: _numbers(a) for a in applications()})
        if chosen is not None:
            return _found(*chosen, counted)
    return None


def absent(tensors: Tensors, names: Mapping[str, str]) -> str | None:
    """Words on a network of Keras' that neither torchvision nor timm has; None where it is none that is known."""
    parts = {part for path in (*tensors, *names) for part in path.split("/")} | set(names.values())
    for pattern, said in ABSENT.items():
        if any(re.fullmatch(pattern, part) for part in parts):
            return said.format("which neither torchvision nor timm has")
    named = named_layers(tensors, names)[0]
    for application in applications():
        if application.width is not None and all(layer.theirs in named for layer in _needed(application)):
            kind = application.name.partition(" ")[0]
            return f"a {kind} of Keras in a width that timm has no network of"
    return None


def _needed(application: Application) -> list[Layer]:
    return [layer for layer in application.layers if layer.theirs not in application.optional]


def _chosen(layers: Layers, keys: Mapping[str, list[str]]) -> tuple[Application, list[str]] | None:
    """(the application of which all is there, and most, with the keys of its layers)"""
    best: tuple[Application, list[str]] | None = None
    for application in applications():
        own = _last_norm(keys[application.name], layers)
        pairs = zip(own, application.layers, strict=True)
        whole = all(key in layers or layer.theirs in application.optional for key, layer in pairs)
        if whole and _as_wide(application, own, layers) and (best is None or len(own) > len(best[1])):
            best = application, own
    return best


def _last_norm(keys: list[str], layers: Layers) -> list[str]:
    """ConvNeXt's last norm has no name of its own in a network without its top."""
    if "head_layernorm" in layers or "head_layernorm" not in keys:
        return keys
    others = [name for name in layers if re.fullmatch(r"layer_normalization(_\d+)?", name)]
    return [others[0] if len(others) == 1 and key == "head_layernorm" else key for key in keys]


def _as_wide(application: Application, keys: list[str], layers: Layers) -> bool:
    if application.width is None:
        return True
    name, width = application.width
    place = next(i for i, layer in enumerate(application.layers) if layer.theirs == name)
    kernel = layers[keys[place]].get("kernel")
    return kernel is not None and kernel.tensor.shape[-1] == width


def _numbers(application: Application) -> list[str]:
    """Its layers as files call them that only count: `conv2d/12`."""
    seen: Counter[str] = Counter()
    keys = []
    for layer in application.layers:
        key = layer.kind if layer.inside is None else f"{layer.inside}/{layer.kind}"
        keys.append(f"{key}/{seen[key]}")
        seen[key] += 1
    return keys


def _found(application: Application, keys: list[str], layers: Layers) -> Found:
    own = {key: layer for key, layer in zip(keys, application.layers, strict=True) if key in layers}
    tensors: dict[str, Tensor] = {}
    for key, variables in layers.items():
        if key in own:
            tensors |= {_name(own[key], kind): _laid_out(own[key], v.tensor) for kind, v in variables.items()}
            tensors |= _without_scale(own[key], variables)
        elif not re.fullmatch(PREPROCESSING, key):
            tensors |= _unknown(key, variables)
    normalisation = application.normalisation or _normalisation(layers)
    return Found(application, {n: t.contiguous() for n, t in tensors.items()}, normalisation)


def _name(layer: Layer, variable: str) -> str:
    return layer.ours if layer.kind == SCALE else f"{layer.ours}.{KINDS.get(variable, variable)}"


def _laid_out(layer: Layer, array: Tensor) -> Tensor:
    """From TensorFlow's order of dimensions to torch's; a 1x1 convolution as the Linear that it is in torch."""
    if array.ndim == 2:
        return array.T
    if array.ndim != 4:
        return array
    array = array.permute(2, 3, 0, 1) if layer.kind == DEPTHWISE else array.permute(3, 2, 0, 1)
    return array.flatten(1) if layer.ours == "classifier" else array


def _without_scale(layer: Layer, variables: Mapping[str, Variable]) -> dict[str, Tensor]:
    if layer.kind != BATCH_NORM or "gamma" in variables or "beta" not in variables:
        return {}
    return {f"{layer.ours}.weight": variables["beta"].tensor.new_ones(variables["beta"].tensor.shape)}


def _unknown(key: str, variables: Mapping[str, Variable]) -> dict[str, Tensor]:
    """What somebody put on top: a Dense as a Linear, so that a head is known by its shape, the rest as it is."""
    kernel = variables.get("kernel")
    if kernel is not None and kernel.tensor.ndim == 2:
        layer, rest = key.replace("/", "."), {kind: v.tensor for kind, v in variables.items() if kind != "kernel"}
        return {f"{layer}.weight": kernel.tensor.T, **{f"{layer}.{kind}": tensor for kind, tensor in rest.items()}}
    return {v.path.replace("/", "."): v.tensor for v in variables.values()}


def _normalisation(layers: Layers) -> Normalisation | None:
    """As EfficientNet's own layer has it, on pixels from 0 to 1.

    The variances of the published files are deviations: a second layer, which has no weights, divides by their roots
    again (tensorflow/tensorflow#49930).
    """
    own = next((v for key, v in layers.items() if re.fullmatch(PREPROCESSING, key)), {})
    if not {"mean", "variance"} <= own.keys() or own["mean"].tensor.numel() != 3:
        return None
    mean, variance = (own[kind].tensor.flatten().tolist() for kind in ("mean", "variance"))
    twice = all(abs(v - s) < CLOSE for v, s in zip(variance, IMAGENET.std, strict=True))
    second = [math.sqrt(s) if twice else 1.0 for s in IMAGENET.std]
    return Normalisation(tuple(mean), tuple(math.sqrt(v) * s for v, s in zip(variance, second, strict=True)))
