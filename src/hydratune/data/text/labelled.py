"""What data sets of labelled text have in common: splits, classes, and what is told of them."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hydratune.core.task import Task
from hydratune.core.types import TargetSpec
from hydratune.data.dataset import (
    SPLITS,
    WHOLE,
    check_folds,
    check_share,
    completed,
    fold_summary,
    k_fold_split,
    stratified_split,
)
from hydratune.data.duplicates import Sample
from hydratune.data.targets import LISTED, Targets, counted, targets_of
from hydratune.data.text import labels
from hydratune.data.text.text_dataset import TextDataset
from hydratune.data.text.text_stream import TextSplit
from hydratune.data.text.tokenizer import TokenizerRecipe

Text = str | tuple[str, str]  # or a pair of them


class Labelled(TextDataset):
    """Base of the sets with labels: a subclass says `rows()`, and what is text and what are labels in one."""

    classes: Sequence[str] | None = None  # in the order of their numbers, where they are given
    separator = "auto"  # between several labels in one column
    val_share = test_share = 0.1  # of train, where the source has no such part
    fold: int | None = None  # which of so many of train and val together is val, in place of val_share
    folds = 5

    @abstractmethod
    def rows(self) -> dict[str, list[Any]]:
        """Of train, and of val and test where the source tells them apart."""

    @abstractmethod
    def text_of(self, row: Any) -> str: ...

    @abstractmethod
    def labels_of(self, row: Any) -> Sequence[str]: ...

    @abstractmethod
    def samples(self, rows: Sequence[Any]) -> TextSplit: ...

    def counts(self, rows: Sequence[Any]) -> str:
        """What is said of their labels."""
        return ""

    def ordered(self, found: list[str]) -> list[str]:
        """The labels of train as the source numbers them, where it does."""
        return found

    @cached_property
    def _source(self) -> dict[str, list[Any]]:
        return self.rows()

    @cached_property
    def parts(self) -> dict[str, list[Any]]:
        """Every split; what the source has not is carved out of train, in the proportions of its first labels."""
        rows = self._source
        if not rows["train"]:
            raise ValueError("dataset: train has no rows")
        if not any(self.text_of(row).strip() for row in rows["train"]):
            raise ValueError("dataset: every text of train is empty")
        if self.fold is None:
            return completed(rows, self.val_share, self.test_share, self._divided)
        rows = completed(rows, 0, self.test_share, self._divided)
        pool = [row for name in ("train", "val") for row in rows.get(name, ())]
        train, val = _taken(pool, k_fold_split(self.strata(pool), self.fold, self.folds, self.split_seed))
        return {**rows, "train": train, "val": val}

    def strata(self, rows: list[Any]) -> Tensor:
        """[N] group of each row, from each of which a split should take its share: its first label."""
        firsts = [self.labels_of(row)[0] for row in rows]
        known = {label: i for i, label in enumerate(sorted(set(firsts)))}
        return torch.tensor([known[label] for label in firsts])

    def _divided(self, rows: list[Any], share: float, name: str) -> tuple[list[Any], list[Any]]:
        strata = self.strata(rows)
        if len(strata.unique()) == len(rows):
            raise ValueError(
                f"dataset: no label occurs twice in the {len(rows):,} rows of train, such as "
                f"{self.labels_of(rows[0])[0]!r}, so nothing of it can be {name}"
            )
        return _taken(rows, stratified_split(strata, share, self.split_seed + (name == "test")))

    def evaluated_parts(self) -> Mapping[str, TextSplit]:
        rows = self._source
        named = {WHOLE: rows["train"]} if rows.keys() == {"train"} else rows
        return {name: self.samples(own) for name, own in named.items() if own}

    def encoded(self, name: str) -> TextSplit:
        rows = self.parts[name]
        if rows and not any(self.text_of(row).strip() for row in rows):
            raise ValueError(f"dataset: every text of {name} is empty")
        split = self.samples(rows)
        whence = "" if name in self._source else "divided off train: "
        if self.fold is not None and name != "test":
            whence = f"{fold_summary(name, self.fold, self.folds)}: "
        return split.summarised(whence + split.summary, self.counts(rows))

    def class_names(self) -> Sequence[str]:
        return list(self.numbers)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of the labels. Raises ValueError for one that train never has."""
        order = self.classes or self.ordered(labels.in_order(self._counts))
        names = {label: i for i, label in enumerate(order)}
        if len(names) < 2:
            raise ValueError(f"dataset: train has the one label {', '.join(names)}; there is nothing to tell apart")
        # those that are given need no look at what is divided off
        parts = self._source if self.classes else self.parts
        for part, rows in parts.items():
            for row in rows:
                if foreign := [label for label in self.labels_of(row) if label not in names]:
                    where = "dataset.classes does not have" if self.classes else "train never has"
                    raise ValueError(
                        f"dataset: {part} has the label {foreign[0]!r} (of {self.text_of(row)[:40]!r}), which {where}; "
                        f"labels: {', '.join(list(names)[:20])}"
                    )
        return names

    @cached_property
    def _counts(self) -> Counter[str]:
        """How often train has each label; train and val where they are folds, whose classes are the same in all."""
        parts = ("train",) if self.fold is None else ("train", "val")
        return Counter(label for part in parts for row in self.parts[part] for label in self.labels_of(row))

    def doubts(self) -> list[str]:
        return [] if self.classes else labels.doubts(self._counts)

    def compared(self) -> Mapping[str, Sequence[Sample]]:
        """Texts count as the same whatever their blanks."""
        return {
            name: [(" ".join(self.text_of(row).split()), tuple(self.labels_of(row))) for row in self.parts[name]]
            for name in SPLITS
        }

    def texts(self) -> Iterable[str]:
        return [self.text_of(row) for row in self.parts["train"]]

    def contents(self) -> Iterable[str]:
        rows = ((name, self.text_of(row), " ".join(self.labels_of(row))) for name in SPLITS for row in self.parts[name])
        return (word for row in rows for word in row)


def _taken(rows: Sequence[Any], both: tuple[Tensor, Tensor]) -> tuple[list[Any], list[Any]]:
    """The rows of these numbers, and of those."""
    first, second = ([rows[i] for i in ids.tolist()] for ids in both)
    return first, second


class FromSource(Labelled):
    """Beside LabelledTexts or TaggedSentences: a set whose source may lack parts, and whose classes may be given."""

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, *, classes: Sequence[str | int] | None = None,
        separator: str = "auto", val_share: float = 0.1, test_share: float = 0.1, fold: int | None = None,
        folds: int = 5, **options: Any,
    ) -> None:  # fmt: skip
        """separator: between several labels in one column; auto: the one of ; | , that is there.

        classes: names in the order of their numbers; null: those of train in order.

        val_share, test_share: what is taken from train where the source has no such part. fold: which of so many
        `folds` of train and val together is val, in place of val_share.
        """
        super().__init__(task, tokenizer, **options)
        check_share("val_share", val_share)
        check_share("test_share", test_share)
        check_folds(fold, folds)
        self.fold, self.folds = fold, folds
        self.classes, self.separator = labels.given(classes), separator
        self.val_share, self.test_share = val_share, test_share


class LabelledTexts(Labelled):
    """Base of the sets of texts with a label each: rows of (text, label), or of ((text, text), label).

    Where the task asks for sets of labels or for numbers, a row may have several cells behind its text.
    """

    def label_columns(self) -> Sequence[str]:
        """What the cells behind the text are called."""
        return ("label",)

    @cached_property
    def targets(self) -> Targets | None:
        """What the cells are read as; None: one of several classes."""
        kind = self.task.kind
        if kind not in ("labels", "values"):
            return None
        train = [row[1:] for row in self._source["train"]]
        return targets_of(kind, self.label_columns(), train, self.classes, self.separator)

    def class_names(self) -> Sequence[str]:
        if self.targets is None:
            return super().class_names()
        return () if self.targets.spec is not None else self.targets.names

    def numbers_asked(self) -> TargetSpec | None:
        return None if self.targets is None else self.targets.spec

    def doubts(self) -> list[str]:
        return super().doubts() if self.targets is None else self.targets.doubts()

    def strata(self, rows: list[Any]) -> Tensor:
        if self.targets is None:
            return super().strata(rows)
        return torch.zeros(len(rows), dtype=torch.int64)  # any rows will do

    def pairs(self) -> bool:
        return isinstance(next(iter(self._source.values()))[0][0], tuple)

    def text_of(self, row: tuple[Text, str]) -> str:
        return row[0] if isinstance(row[0], str) else "\n".join(row[0])

    def labels_of(self, row: tuple[Text, str]) -> Sequence[str]:
        return row[1:]

    def samples(self, rows: Sequence[tuple[Text, str]]) -> TextSplit:
        return self.of_texts([row[0] for row in rows], self._wanted(rows))

    def _wanted(self, rows: Sequence[tuple[Text, str]]) -> Tensor:
        if self.targets is not None:
            return self.targets.encoded([row[1:] for row in rows], "a split")
        return torch.tensor([self.numbers[row[1]] for row in rows])

    def counts(self, rows: Sequence[tuple[Text, str]]) -> str:
        """Texts of each class, as far as there is room for that."""
        if self.targets is not None:
            return self.targets.summary(self._wanted(rows))
        counts = Counter(row[1] for row in rows)
        shown = counted(list(self.numbers), [counts[label] for label in self.numbers])
        return shown if len(self.numbers) <= LISTED else f"{shown} texts"


class TaggedSentences(Labelled):
    """Base of the sets of words with a tag each: rows of (words, tags)."""

    unit = "sentences"

    def text_of(self, row: tuple[Sequence[str], Sequence[str]]) -> str:
        return " ".join(row[0])

    def labels_of(self, row: tuple[Sequence[str], Sequence[str]]) -> Sequence[str]:
        return row[1]

    def samples(self, rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> TextSplit:
        return self.of_sentences([words for words, _ in rows], [[self.numbers[t] for t in tags] for _, tags in rows])
