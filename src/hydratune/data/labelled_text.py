"""Files of labelled text: tables for classification, columns of words for tagging."""

from __future__ import annotations

import difflib
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hydratune.data.dataset import SPLITS, carve, completed
from hydratune.data.text_dataset import TextDataset
from hydratune.data.text_files import TABLES, Parts, cell, lines_of, parts_of, read_text, table_rows
from hydratune.data.text_stream import TextSplit
from hydratune.data.tokenizer import TokenizerRecipe
from hydratune.types import Task

Text = str | tuple[str, str]  # or a pair of them
LISTED = 12  # classes whose names are told
COMMENT = re.compile(r"#.*=|#\s*(id|sent|newdoc|newpar)\b")


def columns_of(text: Any) -> list[Any]:
    """The column of texts, or the two of pairs."""
    columns = [text] if isinstance(text, (str, int)) else list(text)
    if len(columns) not in (1, 2):
        raise ValueError(f"dataset.text={columns}: one column, or two of pairs")
    return columns


def one_or_pair(texts: Sequence[str]) -> Text:
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


class Labelled(TextDataset):
    """Base of the sets with labels: a subclass says `rows()`, and what is text and what are labels in one."""

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, max_length: int, bucket: int, classes: Sequence[str] | None,
        val_share: float, test_share: float, split_seed: int, inherited: str | None,
    ) -> None:  # fmt: skip
        """classes: names in the order of their numbers; null: those of train in order."""
        super().__init__(task, tokenizer, max_length, bucket, val_share, test_share, split_seed, inherited)
        self.classes = classes

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
        """What is told of their labels."""
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
        return completed(rows, self.val_share, self.test_share, self._divided)

    def _divided(self, rows: list[Any], share: float, name: str) -> tuple[list[Any], list[Any]]:
        firsts = [self.labels_of(row)[0] for row in rows]
        known = {label: i for i, label in enumerate(sorted(set(firsts)))}
        if len(known) == len(rows):
            raise ValueError(
                f"dataset: no label occurs twice in the {len(rows):,} rows of train, such as {firsts[0]!r}, so nothing "
                f"of it can be {name}"
            )
        both = carve(torch.tensor([known[label] for label in firsts]), share, self.split_seed + (name == "test"))
        left, own = ([rows[i] for i in ids.tolist()] for ids in both)
        return left, own

    def encoded(self, name: str) -> TextSplit:
        rows = self.parts[name]
        split = self.samples(rows)
        whence = "" if name in self._source else "divided off train: "
        return split.telling(whence + split.told, self.counts(rows))

    def class_names(self) -> Sequence[str]:
        return list(self.numbers)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Of the labels. Raises ValueError for one that train never has."""
        found = {label for row in self.parts["train"] for label in self.labels_of(row)}
        order = sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)
        names = {label: i for i, label in enumerate(self.classes or self.ordered(order))}
        if len(names) < 2:
            raise ValueError(f"dataset: train has the one label {', '.join(names)}; there is nothing to tell apart")
        for part in SPLITS:
            for row in self.parts[part]:
                if foreign := [label for label in self.labels_of(row) if label not in names]:
                    where = "dataset.classes does not have" if self.classes else "train never has"
                    raise ValueError(
                        f"dataset: {part} has the label {foreign[0]!r} (of {self.text_of(row)[:40]!r}), which {where}; "
                        f"labels: {', '.join(list(names)[:20])}"
                    )
        return names

    def texts(self) -> Iterable[str]:
        return [self.text_of(row) for row in self.parts["train"]]

    def contents(self) -> Iterable[str]:
        rows = ((name, self.text_of(row), " ".join(self.labels_of(row))) for name in SPLITS for row in self.parts[name])
        return (word for row in rows for word in row)


class LabelledTexts(Labelled):
    """Base of the sets of texts with a label each: rows of (text, label), or of ((text, text), label)."""

    def pairs(self) -> bool:
        return isinstance(self.parts["train"][0][0], tuple)

    def text_of(self, row: tuple[Text, str]) -> str:
        return row[0] if isinstance(row[0], str) else "\n".join(row[0])

    def labels_of(self, row: tuple[Text, str]) -> Sequence[str]:
        return row[1:]

    def samples(self, rows: Sequence[tuple[Text, str]]) -> TextSplit:
        return self.of_texts([text for text, _ in rows], torch.tensor([self.numbers[label] for _, label in rows]))

    def counts(self, rows: Sequence[tuple[Text, str]]) -> str:
        """Texts of each class, as far as there is room for that."""
        counts = Counter(label for _, label in rows)
        if len(self.numbers) <= LISTED:
            return ", ".join(f"{label} {counts[label]:,}" for label in self.numbers)
        every = [counts[label] for label in self.numbers]
        return f"{len(every)} classes of {min(every):,} to {max(every):,} texts"


class TaggedSentences(Labelled):
    """Base of the sets of words with a tag each: rows of (words, tags)."""

    def text_of(self, row: tuple[Sequence[str], Sequence[str]]) -> str:
        return " ".join(row[0])

    def labels_of(self, row: tuple[Sequence[str], Sequence[str]]) -> Sequence[str]:
        return row[1]

    def samples(self, rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> TextSplit:
        return self.of_sentences([words for words, _ in rows], [[self.numbers[t] for t in tags] for _, tags in rows])


class TextTable(LabelledTexts):
    """CSV, TSV or JSON lines: a file, or a folder with train, val (or dev) and test.

    text, label: names of the columns, or their numbers from 0; text=[premise,hypothesis]: pairs of texts. header:
    whether the first row has names. quote: what stands around a value with a separator in it; auto: " in CSV and
    nothing in TSV.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, path: str, text: str | int | Sequence[str | int] = "text",
        label: str | int = "label", header: bool = True, quote: str | None = "auto",
        classes: Sequence[str] | None = None, max_length: int = 128, bucket: int = 50, val_share: float = 0.1,
        test_share: float = 0.1, split_seed: int = 0, inherited: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, max_length, bucket, classes, val_share, test_share, split_seed, inherited)
        self.path, self.text, self.label = Path(path).expanduser(), text, label
        self.header, self.quote = header, quote

    def rows(self) -> dict[str, list[Any]]:
        return {part: [r for f in files for r in self._read(f)] for part, files in self._files.files.items()}

    @cached_property
    def _files(self) -> Parts:
        return parts_of(self.path, (*TABLES, ".txt"))

    def left_alone(self) -> Sequence[Path]:
        return self._files.left_alone

    def _read(self, path: Path) -> Iterator[tuple[Text, str]]:
        wanted = [*(("text", name) for name in columns_of(self.text)), ("label", self.label)]
        for where, row in table_rows(path, self.header, self.quote, [column for _, column in wanted]):
            values = []
            for key, column in wanted:
                if column not in row:
                    raise ValueError(f"dataset.{key}={column}: {where} {_has(row, str(column))}")
                values.append(cell(row[column], f"{column} of {where}"))
            *texts, label = values
            if not label.strip():
                raise ValueError(f"dataset.label={self.label}: is empty in {where}")
            yield one_or_pair(texts), label.strip()


def _has(row: Mapping[Any, Any], wanted: str) -> str:
    names = [str(k) for k in row if isinstance(k, str)]
    numbers = [k for k in row if isinstance(k, int)]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    known = ", ".join(names) if names else f"columns 0 to {len(numbers) - 1}"
    return f"has no such column; {f'nearest: {near[0]}. ' if near else ''}it has {known}"


class ColumnFiles(TaggedSentences):
    """Files as of CoNLL 2003: a word and its tags in a line, an empty line after each sentence.

    word, tag: numbers of the columns, from 0 or from the end (-1). Lines of -DOCSTART-, and CoNLL-U's comments, count
    as empty.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, path: str, word: int = 0, tag: int = -1,
        classes: Sequence[str] | None = None, max_length: int = 128, bucket: int = 50, val_share: float = 0.1,
        test_share: float = 0.1, split_seed: int = 0, inherited: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, max_length, bucket, classes, val_share, test_share, split_seed, inherited)
        self.path, self.word, self.tag = Path(path).expanduser(), word, tag

    def rows(self) -> dict[str, list[Any]]:
        return {part: [s for f in files for s in self._read(f)] for part, files in self._files.files.items()}

    @cached_property
    def _files(self) -> Parts:
        return parts_of(self.path, (".txt", ".conll", ".conllu", ".iob", ".bio", ".tsv"))

    def left_alone(self) -> Sequence[Path]:
        return self._files.left_alone

    def _read(self, path: Path) -> Iterator[tuple[list[str], list[str]]]:
        words: list[str] = []
        tags: list[str] = []
        lines = [*lines_of(read_text(path)), ""]
        width = len(_cells(next((x for x in lines if x.strip() and x[0] not in "#-"), "")))
        for number, line in enumerate(lines, 1):
            # "# O" is a word with its tag, where others have one as well
            comment = not words and line[:1] == "#" and bool(COMMENT.match(line) or len(_cells(line)) != width)
            if not line.strip() or line.startswith("-DOCSTART-") or comment:
                if words:
                    yield words, tags
                words, tags = [], []
                continue
            cells = _cells(line)
            count = len(cells)
            if not all(-count <= at < count for at in (self.word, self.tag)) or (self.word - self.tag) % count == 0:
                raise ValueError(
                    f"dataset: {path} line {number} has {count} column{'s' * (count > 1)}, not word={self.word} and "
                    f"tag={self.tag}"
                )
            if not cells[self.word] or not cells[self.tag]:
                raise ValueError(f"dataset: {path} line {number} has an empty {'tag' if cells[self.word] else 'word'}")
            words.append(cells[self.word])
            tags.append(cells[self.tag])


def _cells(line: str) -> list[str]:
    """Columns between tabs where there are any, else between spaces."""
    stripped = line.strip(" ")
    return [cell.strip() for cell in line.split("\t")] if "\t" in stripped else re.split(" +", stripped)
