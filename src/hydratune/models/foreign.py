"""Weights of other libraries as a state dict: read, renamed, and brought to the images that they will see."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hydratune.core.types import Normalisation
from hydratune.models.families import known_family, to_normalisation
from hydratune.models.formats import SUFFIXES, read_foreign
from hydratune.models.load_weights import read_state_dict

CLOSE = 0.01  # so near, two normalisations are one


def read_weights(
    path: Path, key: str | None = None, ours: Normalisation | None = None
) -> tuple[dict[str, Tensor], str]:
    """(tensors, words on what they are) of a file of torch, safetensors, NumPy, Keras, Flax or TensorFlow.

    key: which of several state dicts of a torch file. ours: the normalisation of the images that the network will see.
    Raises ValueError for a file that holds more than numbers.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return read_state_dict(path, key)
    found = read_foreign(path)
    if not found:
        raise ValueError(f"{path} holds no tensors")
    family = known_family(found)
    if family is None:
        return {name.replace("/", "."): tensor for name, tensor in found.items()}, "of no family that is known here"
    tensors, theirs = family.renamed(found), family.normalisation
    if theirs is None or ours is None or alike(theirs, ours):
        return tensors, family.said
    if family.first is not None and len(ours.mean) == len(theirs.mean):
        tensors = to_normalisation(tensors, family.first, theirs, ours)
        return tensors, f"{family.said}; {family.first} brought to this data's normalisation"
    return tensors, f"{family.said}; trained on images of {as_keys(theirs)}, and these are of another normalisation"


def alike(theirs: Normalisation, ours: Normalisation) -> bool:
    pairs = [*zip(theirs.mean, ours.mean, strict=False), *zip(theirs.std, ours.std, strict=False)]
    return all(abs(a - b) < CLOSE for a, b in pairs)


def as_keys(normalisation: Normalisation) -> str:
    """As it is typed."""
    mean, std = (",".join(f"{v:.4g}" for v in values) for values in (normalisation.mean, normalisation.std))
    return f"dataset.mean=[{mean}] dataset.std=[{std}]"
