"""Data sets of the Hugging Face hub by name, read with its `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from hydratune.core.secrets import hidden
from hydratune.core.task import Task
from hydratune.data.text.labelled import FromSource, LabelledTexts, Text
from hydratune.data.text.labelled_text import columns_of, one_or_pair
from hydratune.data.text.text_files import part_named
from hydratune.data.text.text_stream import TextSplit
from hydratune.data.text.text_tables import cell, class_name
from hydratune.data.text.tokenizer import TokenizerRecipe


class HubTexts(FromSource, LabelledTexts):
    """Texts with a label each: name=stanfordnlp/imdb, or a directory of tables. subset: a configuration of it, if any.

    text=[premise,hypothesis]: pairs. A test part without labels (-1), as of GLUE, is left alone, and one is carved out
    of train instead.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, name: str, subset: str | None = None,
        text: str | Sequence[str] = "text", label: str = "label", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, **options)
        self.name, self.subset, self.text, self.label = name, subset, text, label
        self._columns = columns_of(text, label)

    def rows(self) -> dict[str, list[Any]]:
        return self._found[0]

    def ordered(self, found: list[str]) -> list[str]:
        return self._found[2] or found

    def encoded(self, name: str) -> TextSplit:
        split, dropped = super().encoded(name), self._found[1].get(name, 0)
        return split.summarised(f"{dropped:,} rows without a label are left out" if dropped else "", split.summary)

    @cached_property
    def _found(self) -> tuple[dict[str, list[Any]], dict[str, int], list[str]]:
        """(rows, how many more of them have no label) of each part that has labels; the classes in their order."""
        try:
            import datasets
        except ImportError:
            raise ValueError("dataset: the hub's data sets need an extra: pip install 'hydratune[hub]'") from None
        datasets.disable_progress_bars()
        try:
            found = datasets.load_dataset(os.path.expanduser(self.name), self.subset)
        except Exception as error:
            message = " ".join(hidden(str(error)).split())[:200]
            raise ValueError(f"dataset.name={self.name}: could not be had from the hub ({message})") from None
        rows: dict[str, list[Any]] = {}
        dropped: dict[str, int] = {}
        for own in found:
            part = part_named(own)
            labelled = self._rows(found[own], own) if part else []
            if part and labelled:
                rows.setdefault(part, []).extend(labelled)
                dropped[part] = dropped.get(part, 0) + len(found[own]) - len(labelled)
        if "train" not in rows:
            raise ValueError(f"dataset.name={self.name}: has no train part; parts: {', '.join(found)}")
        first = next(own for own in found if part_named(own) == "train")
        return rows, dropped, list(getattr(found[first].features[self.label], "names", None) or [])

    def _rows(self, table: Any, part: str) -> list[tuple[Text, str]]:
        for key, column in self._columns:
            if column not in table.column_names:
                known = ", ".join(table.column_names)
                raise ValueError(f"dataset.{key}={column}: {self.name} has no such column in {part}; it has {known}")
        names = getattr(table.features[self.label], "names", None)
        found = []
        for number, (*texts, label) in enumerate(zip(*(table[column] for _, column in self._columns), strict=True)):
            if label is None or (names and label < 0):
                continue
            where = f"row {number} of {part}"
            own = [cell(text, f"{name} of {where}") for text, (_, name) in zip(texts, self._columns, strict=False)]
            found.append((one_or_pair(own), class_name(names[label] if names else label, self.label, where)))
        return found
