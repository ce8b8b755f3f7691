"""torchvision's classification models, cut into layer groups and rid of their last Linear.

The families below are cut where their stages are. Any other model that torchvision lists becomes one group and a head:
it trains under every strategy by parameter name, and shares nothing below its head.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.types import Backbone
from hydratune.models.vision.levels import with_levels

SMALL = 64  # pixels; at or below it the stems that shrink an ImageNet photograph fourfold would leave nothing
Groups = list[tuple[str, nn.Module]]


def torchvision_model(
    name: str,
    weights: str | None = None,
    small_images: bool | None = None,
    dropout: float | None = None,
    *,
    input_shape: tuple[int, int, int],
    dense: bool = False,
) -> Backbone:
    """Any classification model of torchvision. The last group returns [B, D]; dense: Levels, of resnets and VGGs.

    weights: null (random), DEFAULT or a name of torchvision's (downloaded), or a file of tensors.
    small_images: a stem that keeps the resolution; null decides by the size of the images (<= 64 px).
    Raises ValueError for a name that torchvision does not list, naming the nearest.
    """
    from torchvision import models

    from hydratune.models.foreign import normalisation_of

    listed = models.list_models(module=models)
    if name not in listed:
        near = difflib.get_close_matches(name, listed, n=3, cutoff=0.4)
        raise ValueError(f"model.name={name}: torchvision lists no such model; nearest: {', '.join(near) or 'none'}")
    size = min(input_shape[1:])
    small = size <= SMALL if small_images is None else small_images
    options: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        source = _vit(name, size, small, options) if name.startswith("vit_") else models.get_model(name, **options)
    except TypeError:
        raise ValueError(f"model.dropout={dropout}: {name} has no such option") from None
    head_name = _remove_head(source)
    groups = _stages(source, small)
    if dense:
        groups = _levels(name, source, small)
    loader = None if weights is None else lambda: _weights(source, name, weights)
    classes = None if weights is None else _categories(name, weights)
    theirs = None if weights is None or classes is not None else normalisation_of(Path(weights))
    return Backbone(
        source=source, groups=groups, head_name=head_name, weights=loader, classes=classes, normalisation=theirs
    )


def _categories(name: str, weights: str) -> list[str] | None:
    """What the head of torchvision's own weights is for."""
    from torchvision import models

    kinds = models.get_model_weights(name)
    known = weights == "DEFAULT" or weights in kinds.__members__
    return list(kinds[weights].meta["categories"]) if known else None


def _weights(source: nn.Module, name: str, weights: str) -> tuple[str, Mapping[str, Tensor]]:
    """(where from, tensors). The hub needs a network; without one a sentence says what to do."""
    from torchvision import models

    from hydratune.models.foreign import read_weights

    kinds = models.get_model_weights(name)
    if weights != "DEFAULT" and weights not in kinds.__members__:
        tensors, which = read_weights(Path(weights), network=source)
        return weights + (f" ({which})" if which else ""), tensors
    chosen = kinds[weights]
    try:
        return f"torchvision {chosen}", chosen.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # URLError is one
        raise ValueError(
            f"model.weights={weights}: could not download {chosen.url} ({error}). Fetch that file on a machine with a "
            f"network and put it into {torch.hub.get_dir()}/checkpoints, or give its path as model.weights"
        ) from None


def _remove_head(source: nn.Module) -> str:
    """Put the identity in place of the last Linear (or the 1x1 convolution of SqueezeNet); its name."""
    layers = dict(source.named_modules())
    last = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
    last = last or [n for n, m in layers.items() if isinstance(m, nn.Conv2d) and n.startswith("classifier.")]
    if not last:
        raise ValueError("model.name: this model does not end in a Linear, so it has no head to replace")
    parent, _, child = last[-1].rpartition(".")
    setattr(source.get_submodule(parent), child, nn.Identity())
    return last[-1]


def _vit(name: str, size: int, small: bool, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if not small:
        patch = int(name.rpartition("_")[2])
        if size % patch:
            raise ValueError(f"model.name={name}: {size} px is no multiple of its patches' {patch}; set dataset.size")
        return models.get_model(name, image_size=size, **options)
    patch = next(p for p in range(max(size // 8, 1), 0, -1) if size % p == 0)
    base = {"b": (12, 12, 768, 3072), "l": (24, 16, 1024, 4096), "h": (32, 16, 1280, 5120)}[name.split("_")[1]]
    layers, heads, hidden, mlp = base
    return models.VisionTransformer(size, patch, layers, heads, hidden, mlp, **options)


def _stages(source: nn.Module, small: bool) -> Groups:
    from torchvision.models import VGG, ConvNeXt, ResNet, VisionTransformer

    if isinstance(source, ResNet):
        return _resnet(source, small)
    if isinstance(source, VGG):
        return _vgg(source, small)
    if isinstance(source, VisionTransformer):
        return _vision_transformer(source)
    if isinstance(source, ConvNeXt):
        return _convnext(source, small)
    return [("body", source)]


def _levels(name: str, m: Any, small: bool) -> Groups:
    """The stages without their pooling, each a level."""
    from torchvision.models import VGG, ResNet

    if isinstance(m, ResNet):
        _, _, *layers, _ = _resnet(m, small)
        stem = nn.Sequential(m.conv1, m.bn1, m.relu)  # the pooling comes after the finest level
        groups = [("stem", stem), ("layer1", nn.Sequential(m.maxpool, m.layer1)), *layers, ("layer4", m.layer4)]
        return with_levels(groups, [name for name, _ in groups[small:]])  # a small stem is as fine as the first layer
    if isinstance(m, VGG):
        m.classifier = nn.Identity()
        stages = _vgg_stages(m)
        return with_levels(stages, [name for name, _ in stages])
    raise ValueError(f"model.name={name}: offers no levels for a dense task; resnet and vgg models do")


def _resnet(m: Any, small: bool) -> Groups:
    if small:
        m.conv1 = nn.Conv2d(3, m.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(m.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        m.maxpool = nn.Identity()
    return [
        ("stem", nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool)),
        ("layer1", m.layer1),
        ("layer2", m.layer2),
        ("layer3", m.layer3),
        ("layer4", nn.Sequential(m.layer4, m.avgpool, nn.Flatten())),
    ]


def _vgg_stages(m: Any) -> Groups:
    """A group per stage, each ending in its pooling."""
    groups: Groups = []
    stage: list[nn.Module] = []
    for layer in m.features:
        stage.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            groups.append((f"stage{len(groups) + 1}", nn.Sequential(*stage)))
            stage = []
    return groups


def _vgg(m: Any, small: bool) -> Groups:
    """At 32 px the head sits on the last stage, as in CIFAR's VGG."""
    groups = _vgg_stages(m)
    if small:
        m.classifier = nn.Identity()
        name, last = groups[-1]
        groups[-1] = (name, nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    else:
        groups.append(("classifier", nn.Sequential(m.avgpool, nn.Flatten(), m.classifier)))
    return groups


class _Embedding(nn.Module):
    """Patches, class token, positions. [B, 3, H, W] -> [B, 1 + patches, D]"""

    def __init__(self, m: Any) -> None:
        super().__init__()
        self.conv_proj, self.class_token, self.pos_embedding = m.conv_proj, m.class_token, m.encoder.pos_embedding
        self.dropout = m.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


class _ClassToken(nn.Module):
    """[B, 1 + patches, D] -> [B, D]"""

    def __init__(self, ln: nn.Module) -> None:
        super().__init__()
        self.ln = ln

    def forward(self, tokens: Tensor) -> Tensor:
        return self.ln(tokens)[:, 0]


def _vision_transformer(m: Any) -> Groups:
    blocks: Groups = [(f"block{i}", block) for i, block in enumerate(m.encoder.layers)]
    name, last = blocks[-1]
    return [("embedding", _Embedding(m)), *blocks[:-1], (name, nn.Sequential(last, _ClassToken(m.encoder.ln)))]


def _convnext(m: Any, small: bool) -> Groups:
    """Stem, then each stage with the downsampling before it."""
    if small:  # patches of one or two pixels instead of four
        old = m.features[0][0]
        m.features[0][0] = nn.Conv2d(3, old.out_channels, 3, 1, 1)
        nn.init.trunc_normal_(m.features[0][0].weight, std=0.02)
        nn.init.zeros_(m.features[0][0].bias)
    f = m.features
    return [
        ("stem", f[0]),
        ("stage1", f[1]),
        ("stage2", nn.Sequential(f[2], f[3])),
        ("stage3", nn.Sequential(f[4], f[5])),
        ("stage4", nn.Sequential(f[6], f[7], m.avgpool, m.classifier)),  # its LayerNorm and Flatten; the Linear is gone
    ]
