"""timm's models: any of them by name, divided into layer groups, with its published weights or a file's."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydratune.core.types import Backbone, Normalisation
from hydratune.models.divide import Groups, divided
from hydratune.models.vision.levels import levels_of

INSTALL = "pip install 'hydratune[timm]'"
Shape = tuple[int, int, int]


def timm_model(
    name: str,
    weights: str | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    pad_type: str | None = None,
    bn_eps: float | None = None,
    *,
    input_shape: Shape,
    dense: bool = False,
) -> Backbone:
    """Any model of timm. The last group returns [B, D]; dense: Levels, of those that give maps of several resolutions.

    weights: null (random), DEFAULT (those that the name stands for, downloaded), or a file of tensors.
    drop_path: the rate of stochastic depth (arXiv 1603.09382). pad_type: same pads strides as TensorFlow does, to the
    right and below; of networks that are offered both ways, such as MobileNet. bn_eps: the epsilon of their BatchNorms.
    Raises ValueError for a name that timm does not list, naming the nearest, and where timm is not installed.
    """
    timm = _timm()
    known = timm.list_models() + timm.list_pretrained()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"model.name={name}: timm lists no such model; nearest: {', '.join(near) or 'none'}")
    if pad_type not in (None, "same", "symmetric"):
        raise ValueError(f"model.pad_type={pad_type}: one of same, symmetric; null is timm's own for {name}")
    options = {"drop_rate": dropout, "drop_path_rate": drop_path, "bn_eps": bn_eps}
    padding = None if pad_type is None else {"same": "same", "symmetric": ""}[pad_type]
    source = _created(timm, name, input_shape, {**options, "pad_type": padding})
    published = source.pretrained_cfg
    example = torch.rand(1, *(3, *input_shape[1:]), generator=torch.Generator().manual_seed(0))
    groups = _groups(name, source, example, dense)
    loader = None if weights is None else lambda: _weights(source, name, weights)
    return Backbone(
        source=source,
        groups=groups,
        head_name=_classifier(published),
        weights=loader,
        normalisation=None if weights is None else _normalisation(published, weights),
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(f"model: timm is not installed; {INSTALL}") from None
    return timm


def _created(timm: Any, name: str, shape: Shape, options: Mapping[str, float | str | None]) -> Any:
    """Without its classifier."""
    asked: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size and tuple(published.input_size[1:]) != tuple(shape[1:]):
        asked["img_size"] = tuple(shape[1:])
    try:
        return timm.create_model(name, num_classes=0, **asked)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        given = ", ".join(f"{key}={value}" for key, value in asked.items())
        raise ValueError(
            f"model.name={name}: timm cannot make it{f' with {given}' if given else ''} ({error})"
        ) from None


def _groups(name: str, source: nn.Module, example: Tensor, dense: bool) -> Groups:
    from timm.models._features_fx import get_notrace_functions

    notrace = tuple(get_notrace_functions())
    if not dense:
        return divided(source, example, notrace)
    told: Any = getattr(source, "feature_info", None) or []
    last = told[-1]["module"] if told and isinstance(told[-1], Mapping) else None
    groups = [] if last is None else divided(source, example, notrace, until=last)
    found = levels_of(groups, example) if len(groups) > 1 else []
    if len(found) < 2:
        raise ValueError(
            f"model.name={name}: offers no levels for a dense task; networks of stages do, such as timm's resnet50, "
            "efficientnet_b0 or convnext_tiny"
        )
    return found


def _classifier(published: Mapping[str, Any]) -> str:
    """Its name in timm's weights; of two heads, the first."""
    named = published.get("classifier") or "head"
    return str(named if isinstance(named, str) else next(iter(named)))


def _normalisation(published: Mapping[str, Any], weights: str) -> Normalisation:
    """Of the images that the weights were trained on; a file of another library has its own."""
    from hydratune.models.foreign import normalisation_of

    theirs = None if weights == "DEFAULT" else normalisation_of(Path(weights))
    return theirs or Normalisation(tuple(published["mean"]), tuple(published["std"]))


def _weights(source: Any, name: str, weights: str) -> tuple[str, Mapping[str, Tensor]]:
    """(where from, tensors), as this version of the model names them."""
    from hydratune.models.foreign import read_weights

    published: Mapping[str, Any] = source.pretrained_cfg
    said, path = (weights, Path(weights)) if weights != "DEFAULT" else _downloaded(name, published)
    tensors, which = read_weights(path, network=source)
    said += f" ({which})" if which else ""
    # What timm does to weights of another image size, or of its own earlier versions
    adapted = getattr(sys.modules[type(source).__module__], "checkpoint_filter_fn", None)
    return said, tensors if adapted is None else adapted(dict(tensors), source)


def _downloaded(name: str, published: Mapping[str, Any]) -> tuple[str, Path]:
    """(what they are and under which licence, the file)."""
    hub = published.get("hf_hub_id")
    if not hub:
        raise ValueError(f"model.weights=DEFAULT: timm knows no published weights of {name}; null starts at random")
    licence = published.get("license") or "not stated"
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(hub, published.get("hf_hub_filename") or "model.safetensors")
    except Exception as error:  # of a dozen kinds: no network, no such file, no permission
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.weights=DEFAULT: could not download {hub} ({first}). Fetch its model.safetensors on a machine with "
            "a network and give its path as model.weights"
        ) from None
    return f"timm {hub} (licence: {licence})", Path(path)
