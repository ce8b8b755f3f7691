"""Which inputs belong to a data set: how samples without answers become what its networks are given."""

from __future__ import annotations

from hydratune.core.types import BoardSpec, ImageSpec, Spec, TextSpec
from hydratune.data.boards.board_dataset import BoardDataset
from hydratune.data.boards.inputs import BoardInputs
from hydratune.data.dataset import Dataset
from hydratune.data.images.image_dataset import ImageDataset
from hydratune.data.images.inputs import ImageInputs, options_of
from hydratune.data.inputs import Inputs
from hydratune.data.text.inputs import text_inputs
from hydratune.data.text.text_dataset import TextDataset

KINDS = (
    (ImageDataset, ImageSpec, "images"), (TextDataset, TextSpec, "texts"), (BoardDataset, BoardSpec, "positions"),
)  # fmt: skip


def inputs_of(dataset: Dataset, spec: Spec) -> Inputs:
    """spec: what the network was trained on.

    Raises ValueError for data of another kind than that, and for a user's own kind that does not say how it is read.
    """
    if type(dataset).inputs is not Dataset.inputs:
        return dataset.inputs(spec)
    for kind, own, what in KINDS:
        if isinstance(dataset, kind) and not isinstance(spec, own):
            raise ValueError(f"dataset: holds {what}, and the network was trained on other data")
    if isinstance(dataset, BoardDataset) and isinstance(spec, BoardSpec):
        return BoardInputs(dataset, spec)
    if isinstance(dataset, ImageDataset) and isinstance(spec, ImageSpec):
        return ImageInputs(dataset.task, dataset.augment, spec, **options_of(dataset))
    if isinstance(dataset, TextDataset) and isinstance(spec, TextSpec):
        return text_inputs(dataset, spec)
    return dataset.inputs(spec)
