"""Weights of other libraries as a state dict: read, renamed, and brought to the images that they will see."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hydratune.core.types import Normalisation
from hydratune.models.families import known_family, to_normalisation
from hydratune.models.formats import HDF5, SUFFIXES, group_names, read_foreign
from hydratune.models.keras.network import fitted
from hydratune.models.keras.recognise import absent, keras_application
from hydratune.models.load_weights import read_state_dict

CLOSE = 0.01  # so near, two normalisations are one


def read_weights(
    path: Path, key: str | None = None, ours: Normalisation | None = None, network: nn.Module | None = None
) -> tuple[dict[str, Tensor], str]:
    """(tensors, words on what they are) of a file of torch, safetensors, NumPy, Keras, Flax or TensorFlow.

    key: which of several state dicts of a torch file. ours: the normalisation of the images that the network will see.
    network: the one that they are for. Raises ValueError for a file that holds more than numbers, and for a network
    that pads otherwise than the one that the weights were trained in.
    """
    if not _is_foreign(path):
        return read_state_dict(path, key)
    found = read_foreign(path)
    if not found:
        raise ValueError(f"{path} holds no tensors")
    family = known_family(found)
    if family is None:
        return _of_keras(path, found, ours, network)
    tensors, theirs = family.renamed(found), family.normalisation
    if theirs is None or ours is None or alike(theirs, ours):
        return tensors, family.said
    if family.first is not None and len(ours.mean) == len(theirs.mean):
        tensors = to_normalisation(tensors, family.first, theirs, ours)
        return tensors, f"{family.said}; {family.first} brought to this data's normalisation"
    return tensors, f"{family.said}; {_otherwise(theirs, ours)}"


def normalisation_of(path: Path) -> Normalisation | None:
    """Of the images that the weights in another library's file were trained on; None where that is not known."""
    if not _is_foreign(path):
        return None
    found = read_foreign(path)
    if (family := known_family(found)) is not None:
        return family.normalisation
    application = keras_application(found, _names(path))
    return None if application is None else application.normalisation


def _is_foreign(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _names(path: Path) -> dict[str, str]:
    return group_names(path) if path.suffix.lower() in HDF5 else {}


def _of_keras(
    path: Path, tensors: dict[str, Tensor], ours: Normalisation | None, network: nn.Module | None
) -> tuple[dict[str, Tensor], str]:
    names = _names(path)
    try:
        found = keras_application(tensors, names)
        if found is None:
            said = absent(tensors, names) or "of no family that is known here"
            return {name.replace("/", "."): tensor for name, tensor in tensors.items()}, said
        fitting, changed = (found.tensors, "") if network is None else fitted(found, network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    application = found.application
    said = f"Keras' {application.name}, for {application.overrides}"
    return fitting, "; ".join(filter(None, (said, application.remark, changed, _otherwise(found.normalisation, ours))))


def _otherwise(theirs: Normalisation | None, ours: Normalisation | None) -> str:
    if theirs is None or ours is None or alike(theirs, ours):
        return ""
    return f"trained on images of {as_keys(theirs)}, and these are of another normalisation"


def alike(theirs: Normalisation, ours: Normalisation) -> bool:
    pairs = [*zip(theirs.mean, ours.mean, strict=False), *zip(theirs.std, ours.std, strict=False)]
    return all(abs(a - b) < CLOSE for a, b in pairs)


def as_keys(normalisation: Normalisation) -> str:
    """As it is typed."""
    mean, std = (",".join(f"{v:.4g}" for v in values) for values in (normalisation.mean, normalisation.std))
    return f"dataset.mean=[{mean}] dataset.std=[{std}]"
