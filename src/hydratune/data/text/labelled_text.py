"""Files of labelled text: tables for classification, columns of words for tagging."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydratune.core.paths import expanded
from hydratune.core.task import Task
from hydratune.data.text.labelled import FromSource, LabelledTexts, TaggedSentences, Text
from hydratune.data.text.text_files import Parts, lines_of, parts_of, read_text, shown
from hydratune.data.text.text_tables import TABLES, Column, Form, cell, class_name, table_rows
from hydratune.data.text.tokenizer import TokenizerRecipe

COMMENT = re.compile(r"#.*=|#\s*(id|sent|newdoc|newpar)\b")


def columns_of(text: Any, label: Any) -> list[Column]:
    """The column of texts, or the two of pairs; and that of labels, or those of several."""
    columns = [text] if isinstance(text, (str, int)) else list(text)
    if len(columns) not in (1, 2):
        raise ValueError(f"dataset.text={columns}: one column, or two of pairs")
    wanted = [label] if isinstance(label, (str, int)) else list(label)
    if not wanted or any(one in columns for one in wanted):
        raise ValueError(
            f"dataset.label={label}: is what dataset.text is, too" if wanted else "dataset.label: is empty"
        )
    return [*(("text", column) for column in columns), *(("label", one) for one in wanted)]


def one_or_pair(texts: Sequence[str]) -> Text:
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


class TextTable(FromSource, LabelledTexts):
    """CSV, TSV or JSON lines: a file, or a folder with train, val (or dev) and test.

    text, label: names of the columns, or their numbers from 0; text=[premise,hypothesis]: pairs of texts. header,
    quote, delimiter: see Form.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, path: str, text: str | int | Sequence[str | int] = "text",
        label: str | int | Sequence[str | int] = "label", header: bool = True, quote: str | None = "auto",
        delimiter: str | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, **options)
        self.path, self.text, self.label = expanded(path), text, label
        self.header, self.quote, self.delimiter = header, quote, delimiter
        self._columns, self._form = columns_of(text, label), Form(header, quote, delimiter)
        self._form.check()
        if task.kind == "classes" and len(self.label_columns()) > 1:
            raise ValueError(f"dataset.label={label}: one column of classes; dataset/task=multilabel takes several")

    def label_columns(self) -> Sequence[str]:
        return [str(name) for key, name in self._columns if key == "label"]

    def text_columns(self) -> tuple[list[Column], Form]:
        return [column for column in self._columns if column[0] == "text"], self._form

    def rows(self) -> dict[str, list[Any]]:
        return {part: [r for f in files for r in self._read(f)] for part, files in self._files.files.items()}

    @cached_property
    def _files(self) -> Parts:
        return parts_of(self.path, (*TABLES, ".txt"))

    def left_alone(self) -> Sequence[Path]:
        return self._files.left_alone

    def _read(self, path: Path) -> Iterator[tuple[Any, ...]]:
        count = sum(key == "text" for key, _ in self._columns)
        last = self._columns[-1][1]
        for where, values in table_rows(path, self._form, self._columns):
            named = list(zip(values, self._columns, strict=True))
            texts = [cell(text, f"{name} of {where}") for text, (_, name) in named[:count]]
            if self.task.kind == "classes":
                yield one_or_pair(texts), class_name(values[-1], last, where)
            else:
                yield one_or_pair(texts), *(cell(v, f"{name} of {where}").strip() for v, (_, name) in named[count:])


class ColumnFiles(FromSource, TaggedSentences):
    """Files as of CoNLL 2003: a word and its tags in a line, an empty line after each sentence.

    word, tag: numbers of the columns, from 0 or from the end (-1). Lines of -DOCSTART-, and CoNLL-U's comments, count
    as empty.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, path: str, word: int = 0, tag: int = -1, **options: Any
    ) -> None:
        super().__init__(task, tokenizer, **options)
        if word == tag:
            raise ValueError(f"dataset.tag={tag}: is what dataset.word is, too")
        self.path, self.word, self.tag = expanded(path), word, tag

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
        name = shown(path)
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
                    f"dataset: {name} line {number} has {count} column{'s' * (count > 1)}, not word={self.word} and "
                    f"tag={self.tag}"
                )
            if width not in (1, count):
                raise ValueError(f"dataset: {name} line {number} has {count} columns, and the first line has {width}")
            if not cells[self.word] or not cells[self.tag]:
                raise ValueError(f"dataset: {name} line {number} has an empty {'tag' if cells[self.word] else 'word'}")
            words.append(cells[self.word])
            tags.append(cells[self.tag])


def _cells(line: str) -> list[str]:
    """Columns between tabs where there are any, else between spaces."""
    stripped = line.strip(" ")
    return [cell.strip() for cell in line.split("\t")] if "\t" in stripped else re.split(" +", stripped)
