"""Which images are train, val and test, where the source does not say it: shares of train, or folds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.task import Task
from hydratune.data.dataset import check_folds, check_share, completed, fold_summary, k_fold_split, stratified_split
from hydratune.data.duplicates import check_option
from hydratune.data.images.augment import Augment
from hydratune.data.images.image_dataset import ImageDataset

Files = tuple[list[Path], Tensor]  # and their labels


class DividedImages(ImageDataset):
    """Base of the sets of which a part may be missing: it is divided off train then."""

    def __init__(
        self, task: Task, augment: Augment, val_share: float = 0.1, test_share: float = 0.1, split_seed: int = 0,
        duplicates: str = "tell", fold: int | None = None, folds: int = 5, **options: Any,
    ) -> None:  # fmt: skip
        """test_share: 0 for no test split. duplicates: of images that are there twice, tell or refuse.

        fold: which of so many `folds` of train and val together is val, in place of val_share.
        """
        super().__init__(task, augment, **options)
        check_share("val_share", val_share)
        if test_share != 0:
            check_share("test_share", test_share)
        check_option(duplicates)
        check_folds(fold, folds)
        self.fold, self.folds = fold, folds
        self.val_share, self.test_share, self.split_seed = val_share, test_share, split_seed
        self.duplicates = duplicates

    def strata(self, labels: Tensor) -> Tensor:
        """[N] group of each sample, from each of which a part that is divided off takes its share."""
        return labels

    def divided(self, parts: Mapping[str, Files]) -> dict[str, Files]:
        """Every split; what the source has not is carved out of train. Folds are of train and val together."""
        if self.fold is None:
            return completed(parts, self.val_share, self.test_share, self._carved)
        result = completed(parts, 0, self.test_share, self._carved)
        pool = [result[name] for name in ("train", "val") if name in result]
        files = [path for own, _ in pool for path in own], torch.cat([labels for _, labels in pool])
        both = k_fold_split(self.strata(files[1]), self.fold, self.folds, self.split_seed)
        result["train"], result["val"] = _taken(files, both)
        return result

    def divided_how(self, name: str, given: bool) -> str:
        """How a split came to be, where that is worth a word; given: whether the source has it."""
        if self.fold is not None and name != "test":
            return fold_summary(name, self.fold, self.folds)
        return "" if given else "divided off train"

    def _carved(self, train: Files, share: float, name: str) -> tuple[Files, Files]:
        return _taken(train, stratified_split(self.strata(train[1]), share, self.split_seed + (name == "test")))


def _taken(files: Files, both: tuple[Tensor, Tensor]) -> tuple[Files, Files]:
    """The files of these numbers, and of those."""
    paths, labels = files
    first, second = (([paths[i] for i in ids.tolist()], labels[ids]) for ids in both)
    return first, second
