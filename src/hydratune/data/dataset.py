"""What a data set is: a spec, a task, and three splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import Backbone, Batch, Features, Spec, Summary
from hydratune.data.inputs import Inputs, Item
from hydratune.data.sampling import check_sampling
from hydratune.data.stream import Batches, Placement, Stream

SPLITS = ("train", "val", "test")
WHOLE = "all"  # of a set without parts
P = TypeVar("P")


@dataclass(frozen=True)
class WeightsHome:
    """Where the weights lie that a run starts from: beside them may be what they are of no use without."""

    wanted: str  # init_from, as it was typed
    directories: Callable[[], Iterator[Path]]
    required: bool  # whether they must have been kept with the rest of it


class Dataset(ABC):
    """`task` is the question asked of the data."""

    def __init__(self, task: Task, sampling: str = "shuffle") -> None:
        """sampling: what an epoch of training draws: shuffle (each sample once) or class_balanced."""
        check_sampling(sampling, task)
        self.task, self.sampling = task, sampling

    def sampled(self, batches: Batches) -> Batches:
        """With what `sampling` says of those of training."""
        return replace(batches, balanced=batches.training and self.sampling == "class_balanced")

    @abstractmethod
    def spec(self) -> Spec: ...

    @abstractmethod
    def supplied(self) -> Mapping[str, Any]:
        """What a model's constructor may want to know of the data, by parameter."""

    @abstractmethod
    def example(self, body: Backbone) -> Features:
        """What the network is given, of one sample."""

    @abstractmethod
    def split(self, name: str) -> Any:
        """Samples of "train", "val" or "test", which can be counted. Raises ValueError for what cannot be used."""

    def split_names(self) -> Sequence[str]:
        """Of train, val and test those that there are."""
        return SPLITS

    def evaluated_parts(self) -> Mapping[str, Any]:
        """Splits by name, of a set of which nothing trains: it is not divided, but taken as it lies there."""
        return {name: self.split(name) for name in self.split_names()}

    def evaluated_split(self) -> Any:
        """The samples of a set that is only evaluated: those of "val", where it has such a part, else all of them."""
        parts = self.evaluated_parts()
        return next(parts[name] for name in ("val", WHOLE, "test", "train") if name in parts)

    @abstractmethod
    def stream(self, split: Any, body: Backbone, batches: Batches, place: Placement) -> Stream: ...

    def eval_views(
        self, split: Any, body: Backbone, batches: Batches, place: Placement, count: int = 1
    ) -> Iterator[list[Batch]]:
        """Every sample once, in `count` views."""
        self.check_views(count)
        return ([batch] for batch in self.stream(split, body, batches, place).eval_batches())

    def check_views(self, count: int) -> None:
        """Raises ValueError where there are not so many views of a sample."""
        if count > 1:
            raise ValueError(f"predict.views={count}: this kind of data has one view; images have several")

    def kept(self, item: Item, mask: Tensor) -> Any:
        """A predicted mask [H, W] as a picture that can be saved."""
        from PIL import Image

        return Image.fromarray(mask.numpy())

    def packed(self, *tensors: Tensor) -> Features:
        """What the network is given, of the tensors that `example_inputs` names."""
        (only,) = tensors
        return only

    def unpacked(self, features: Features) -> dict[str, Tensor]:
        """The inverse, by name."""
        return {"inputs": features}

    def example_inputs(self, count: int) -> Mapping[str, Tensor]:
        """Plain tensors of so many samples, by name, as other programs will hand them to the network."""
        raise ValueError(f"format: {type(self).__name__} does not say what other programs would hand to the network")

    def made_how(self) -> Mapping[str, Any]:
        """How those are made of files or texts, as far as the spec does not say it."""
        return {}

    def inputs(self, spec: Spec) -> Inputs:
        """For samples that come from elsewhere, of a user's own kind of data. spec: what the network was trained on."""
        raise ValueError(f"inputs: {type(self).__name__} does not say how it reads them")

    @abstractmethod
    def show_batch(self, batch: Batch) -> Mapping[str, Summary]:
        """By tag, what the network sees."""

    def news(self) -> Mapping[str, Summary]:
        """By tag, what somebody would look at of data that has been made since; mostly nothing."""
        return {}

    def split_summary(self, split: Any) -> str:
        """What whoever reads a split's numbers should know of it; mostly nothing."""
        return ""

    def check(self, test: bool) -> Sequence[str]:
        """Before anything is trained: what whoever reads the numbers should know of all splits together.

        test: whether the test split will be read. Raises ValueError for a split that cannot be used.
        """
        return ()

    def check_evaluated(self, split: Any, named: str) -> None:
        """Raises ValueError for a split that nothing can be measured on. named: how the error begins."""
        return

    def files(self) -> str:
        """A digest of what no name and no number in the configuration identifies; empty where there is none."""
        return ""

    def kept_at(self) -> Path | None:
        """A directory with what `keep` would put there; None where there is nothing."""
        return None

    def keep(self, directory: Path, export: bool = False) -> str:
        """Put there what a run's weights are of no use without. Returns a line on it; empty where there is nothing.

        export: for the model's own library to read.
        """
        return ""


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, carved): a stratified, seeded split of sample numbers, each in ascending order.

    Every class with at least two samples gives `share` of them, rounded, and at least one.
    """
    g = torch.Generator().manual_seed(derive_seed(seed, "carve"))
    carved = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.bincount().nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=g)]
        count = max(round(share * len(members)), 1) if len(members) > 1 else 0
        carved[members[:count]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()


def k_fold_split(strata: Tensor, fold: int, folds: int, seed: int) -> tuple[Tensor, Tensor]:
    """(train, val): sample numbers of the other folds and of this one, each in ascending order.

    Every sample is of one fold, which is a function of the seed alone: shuffled, and dealt out one stratum after the
    other, so that neither folds nor their parts of a stratum differ by more than one. Raises ValueError for fewer
    samples than folds.
    """
    if len(strata) < folds:
        raise ValueError(f"dataset.folds={folds}: train and val have {len(strata):,} samples together")
    g = torch.Generator().manual_seed(derive_seed(seed, "folds"))
    shuffled = torch.randperm(len(strata), generator=g)
    dealt = shuffled[strata[shuffled].argsort(stable=True)]
    of = torch.empty_like(dealt)
    of[dealt] = torch.arange(len(strata)) % folds
    return (of != fold).nonzero().flatten(), (of == fold).nonzero().flatten()


def check_folds(fold: int | None, folds: int) -> None:
    """Raises ValueError."""
    if folds < 2:
        raise ValueError(f"dataset.folds={folds}: at least 2")
    if fold is not None and not 0 <= fold < folds:
        raise ValueError(f"dataset.fold={fold}: from 0 to {folds - 1}, as dataset.folds={folds}")


def fold_summary(name: str, fold: int, folds: int) -> str:
    """How train or val came to be."""
    return f"fold {fold} of 0 to {folds - 1}" if name == "val" else f"all folds of 0 to {folds - 1} but {fold}"


def completed(
    parts: Mapping[str, P], val_share: float, test_share: float, divided: Callable[[P, float, str], tuple[P, P]]
) -> dict[str, P]:
    """Every split; what the source has not is divided off train: (train, share, split) -> (what is left, the split).

    A share of 0 divides none.
    """
    result = dict(parts)
    for name, share in (("test", test_share), ("val", val_share)):
        if name not in result and share:
            result["train"], result[name] = divided(result["train"], share, name)
    return result


def check_share(key: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"dataset.{key}={share}: a share between 0 and 1")
