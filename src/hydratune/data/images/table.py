"""Images that a table lists: a path in each row, and what is asked of that image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from hydratune.core.paths import expanded
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.dataset import SPLITS
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import Found, OwnFiles
from hydratune.data.images.image_stream import Split
from hydratune.data.parts import part_called
from hydratune.data.targets import Cells, Targets, targets_of
from hydratune.data.text.text_files import parts_of
from hydratune.data.text.text_tables import TABLES, Form, cell, table_rows

Listed = tuple[Path, Cells]  # an image, and its cells in the columns of the targets


class TableImages(OwnFiles):
    """Base of the sets whose targets stand in columns; this is how they are written."""

    def __init__(
        self, task: Task, augment: Augment, classes: Sequence[str | int] | None = None, separator: str = "auto",
        delimiter: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """classes: names in the order of their numbers; null: those of train. separator: between labels in one column;
        auto: the one of ; | , that is there. delimiter: between columns; null: a comma in CSV, a tab in TSV.
        """
        super().__init__(task, augment, **options)
        self.classes, self.separator, self.form = classes, separator, Form(delimiter=delimiter)
        self.form.check()


class ImageTable(TableImages):
    """CSV, TSV or JSON lines with the path of an image in each row: a file, or a folder with train, val and test.

    What the other columns are read as depends on the task: a class, labels (a column of 0 and 1 for each, or one column
    that lists them), or numbers. Paths are relative to the table, or absolute.
    """

    def __init__(
        self, task: Task, augment: Augment, path: str, image: str = "image", label: str | Sequence[str] = "label",
        part: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """image, label: names of columns; label: several for several numbers, or for labels of 0 and 1. part: the
        column that says train, val or test, if there is one.
        """
        super().__init__(task, augment, **options)
        self.path, self.image, self.part = expanded(path), image, part
        self.label = [label] if isinstance(label, str) else list(label)
        names = [image, *self.label, *([] if part is None else [part])]
        if not self.label or len(set(names)) < len(names):
            raise ValueError(f"dataset.label={self.label}: columns other than those of dataset.image and dataset.part")

    @cached_property
    def _listed(self) -> dict[str, list[Listed]]:
        """Of each part that the source has."""
        columns = [("image", self.image), *(("label", name) for name in self.label)]
        columns += [("part", self.part)] if self.part is not None else []
        found: dict[str, list[Listed]] = {}
        for name, files in parts_of(self.path, TABLES).files.items():
            for file in files:
                for where, (image, *cells) in table_rows(file, self.form, columns):
                    words = [
                        cell(value, f"{key} of {where}") for value, (_, key) in zip(cells, columns[1:], strict=True)
                    ]
                    own = self._part_of(words.pop(), where) if self.part is not None else name
                    place = os.path.join(file.parent, cell(image, f"{self.image} of {where}").strip())
                    found.setdefault(own, []).append((Path(place), [word.strip() for word in words]))
        if "train" not in found:
            raise ValueError(f"dataset.path={self.path}: no row belongs to train")
        return {name: found[name] for name in SPLITS if name in found}

    def _part_of(self, word: str, where: str) -> str:
        part = part_called(word.strip())
        if part is None:
            raise ValueError(
                f"dataset.part={self.part}: holds {word!r} in {where}, which is neither train, val nor test"
            )
        return part

    @cached_property
    def targets(self) -> Targets:
        train = [cells for _, cells in self._listed["train"]]
        return targets_of(self.task.kind, self.label, train, self.classes, self.separator)

    def index(self) -> Found:
        parts = {}
        for name, rows in self._listed.items():
            parts[name] = ([path for path, _ in rows], self.targets.encoded([cells for _, cells in rows], name))
        return Found(parts, self.targets.names, self.targets.doubts())

    def strata(self, labels: Tensor) -> Tensor:
        return self.targets.strata(labels)

    def spec(self) -> ImageSpec:
        spec = super().spec()
        numbers = self.targets.spec
        return spec if numbers is None else replace(spec, class_names=(), targets=numbers)

    def split_summary(self, split: Split) -> str:
        whence = getattr(split, "summary", "")
        assert split.labels is not None
        count = f"{len(split):,} image{'s' * (len(split) != 1)}"
        return f"{f'{whence}: ' if whence else ''}{count}; {self.targets.summary(split.labels)}"
