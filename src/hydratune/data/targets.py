"""Columns of a table as what a task asks for: classes, sets of labels, or numbers."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hydratune.core.types import TargetSpec
from hydratune.data.text import labels

Cells = Sequence[str]  # of one row, in the columns of its targets
LISTED = 12  # classes whose names are shown
SEPARATORS = (";", "|", ",")  # of labels in one column
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class Targets(ABC):
    """names: what the outputs of a head stand for, in their order."""

    names: tuple[str, ...]
    spec: TargetSpec | None = None  # of numbers

    @abstractmethod
    def encoded(self, rows: Sequence[Cells], part: str) -> Tensor:
        """What batches hold of these rows. Raises ValueError for a value that cannot be meant."""

    @abstractmethod
    def summary(self, targets: Tensor) -> str:
        """Of encoded ones: what whoever reads the numbers should know of them."""

    def strata(self, targets: Tensor) -> Tensor:
        """[N] group of each, from each of which a split should take its share; all alike where any will do."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def doubts(self) -> list[str]:
        """What is likely to be a mistake, a sentence each."""
        return []


def targets_of(
    kind: str, columns: Sequence[str], train: Sequence[Cells], classes: Sequence[str | int] | None, separator: str
) -> Targets:
    """For a task of this kind. Raises ValueError for a kind that no column can answer."""
    if kind == "classes":
        if len(columns) != 1:
            raise ValueError(
                f"dataset.label={list(columns)}: one column of classes; dataset/task=multilabel takes more"
            )
        return Classes(train, classes)
    if kind == "labels":
        return LabelSets(columns, train, classes, separator)
    if kind == "values":
        return Numbers(columns, train)
    raise ValueError(f"dataset.task: asks for {kind}, which the columns of a table do not hold")


class Classes(Targets):
    """One of several classes, in the order of `labels.in_order` unless they are given."""

    def __init__(self, train: Sequence[Cells], classes: Sequence[str | int] | None) -> None:
        self._counts = Counter(cells[0] for cells in train)
        self._given = labels.given(classes)
        self.names = tuple(self._given or labels.in_order(self._counts))
        if len(self.names) < 2:
            raise ValueError(
                f"dataset: train has the one label {', '.join(self.names)}; there is nothing to tell apart"
            )
        self._numbers = {name: i for i, name in enumerate(self.names)}

    def encoded(self, rows: Sequence[Cells], part: str) -> Tensor:
        for name, *_ in rows:
            if name not in self._numbers:
                where = "dataset.classes does not have" if self._given else "train never has"
                known = ", ".join(self.names[:20])
                raise ValueError(f"dataset: {part} has the label {name!r}, which {where}; labels: {known}")
        return torch.tensor([self._numbers[cells[0]] for cells in rows], dtype=torch.int64)

    def summary(self, targets: Tensor) -> str:
        return counted(self.names, targets.bincount(minlength=len(self.names)).tolist())

    def strata(self, targets: Tensor) -> Tensor:
        return targets

    def doubts(self) -> list[str]:
        return [] if self._given else labels.doubts(self._counts)


class LabelSets(Targets):
    """Any number of labels per sample: a column of 0 and 1 for each of them, or one column that lists them."""

    def __init__(
        self, columns: Sequence[str], train: Sequence[Cells], classes: Sequence[str | int] | None, separator: str
    ) -> None:
        """separator: what stands between labels in one column; auto: the one of ; | , that is there. JSON lists too."""
        self._columns = list(columns) if len(columns) > 1 else None
        if self._columns is not None:
            if classes is not None and [str(c) for c in classes] != self._columns:
                raise ValueError(
                    f"dataset.classes={list(classes)}: are the columns of dataset.label here; leave it out"
                )
            self.names = tuple(self._columns)
            return
        self._separator = self._found_separator(train) if separator == "auto" else separator
        seen = {label for cells in train for label in self._listed(cells[0])}
        given = labels.given(classes)
        self.names = tuple(given or sorted(seen))
        if not self.names:
            raise ValueError("dataset: train has no label at all")
        self._numbers = {name: i for i, name in enumerate(self.names)}

    @staticmethod
    def _found_separator(train: Sequence[Cells]) -> str:
        plain = [cells[0] for cells in train if not cells[0].lstrip().startswith("[")]
        found = [mark for mark in SEPARATORS if any(mark in cell for cell in plain)]
        if len(found) > 1:
            raise ValueError(
                f"dataset.separator=auto: labels of train hold {' and '.join(map(repr, found))}; say which one "
                f"separates them, such as 'dataset.separator=\"{found[0]}\"'"
            )
        return found[0] if found else SEPARATORS[0]

    def _listed(self, cell: str) -> list[str]:
        if cell.lstrip().startswith("["):
            try:
                found = json.loads(cell)
            except ValueError:
                found = re.findall(r"'([^']*)'|\"([^\"]*)\"", cell)  # as Python writes a list of words
                found = [a or b for a, b in found]
            return [str(label).strip() for label in found]
        return [label.strip() for label in cell.split(self._separator) if label.strip()]

    def encoded(self, rows: Sequence[Cells], part: str) -> Tensor:
        """[N, K] float of 0 and 1"""
        result = torch.zeros(len(rows), len(self.names))
        for i, cells in enumerate(rows):
            for label in self._labels(cells, part):
                result[i, label] = 1.0
        return result

    def _labels(self, cells: Cells, part: str) -> Iterator[int]:
        if self._columns is not None:
            for number, (cell, column) in enumerate(zip(cells, self._columns, strict=True)):
                if (word := cell.strip().lower()) not in YES + NO:
                    raise ValueError(f"dataset.label: {column} of {part} holds {cell!r}, neither 0 nor 1")
                if word in YES:
                    yield number
            return
        for label in self._listed(cells[0]):
            if label not in self._numbers:
                known = ", ".join(self.names[:20])
                raise ValueError(f"dataset: {part} has the label {label!r}, which train never has; labels: {known}")
            yield self._numbers[label]

    def summary(self, targets: Tensor) -> str:
        none = int((targets.sum(1) == 0).sum())
        shown = counted(self.names, targets.sum(0).int().tolist())
        return shown + (f"; {none:,} without any" if none else "")


class Numbers(Targets):
    """A number in each column. Batches hold them standardised with the mean and standard deviation of train."""

    def __init__(self, columns: Sequence[str], train: Sequence[Cells]) -> None:
        self.names = tuple(map(str, columns))
        values = self._values(train, "train")
        mean, std = values.mean(0), values.std(0, correction=0)
        if not bool((std > 0).all()):
            same = self.names[int((std == 0).nonzero()[0])]
            raise ValueError(f"dataset.label={same}: is the same in every row of train; there is nothing to predict")
        self.spec = TargetSpec(self.names, tuple(mean.tolist()), tuple(std.tolist()))
        self._mean, self._std = mean, std

    def _values(self, rows: Sequence[Cells], part: str) -> Tensor:
        def numbers(cells: Cells) -> list[float]:
            return [self._number(c, name, part) for c, name in zip(cells, self.names, strict=True)]

        return torch.tensor([numbers(cells) for cells in rows], dtype=torch.float64)

    @staticmethod
    def _number(cell: str, column: str, part: str) -> float:
        try:
            number = float(cell)
        except ValueError:
            raise ValueError(f"dataset.label={column}: {part} holds {cell!r}, which is no number") from None
        if not math.isfinite(number):
            raise ValueError(f"dataset.label={column}: {part} holds {cell!r}, which is no finite number")
        return number

    def encoded(self, rows: Sequence[Cells], part: str) -> Tensor:
        """[N, K] float"""
        return ((self._values(rows, part) - self._mean) / self._std).float()

    def summary(self, targets: Tensor) -> str:
        values = targets * self._std + self._mean
        columns = zip(self.names, values.amin(0).tolist(), values.amax(0).tolist(), strict=True)
        return ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, low, high in columns)


def counted(names: Sequence[str], counts: Sequence[int]) -> str:
    """How many samples there are of each class, as far as there is room for that."""
    if len(names) <= LISTED:
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    return f"{len(names)} classes of {min(counts):,} to {max(counts):,}"
