"""Data sets of the Hugging Face hub by name, read with its `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydratune.data.labelled_text import LabelledTexts
from hydratune.data.text_dataset import ALIASES
from hydratune.data.tokenizer import TokenizerRecipe
from hydratune.types import Task


class HubTexts(LabelledTexts):
    """Texts with a label each: name=stanfordnlp/imdb, or a directory of tables. subset: a configuration of it, if any.

    A test part without labels (-1), as of GLUE, is left alone, and one is carved out of train instead.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, name: str, subset: str | None = None, text: str = "text",
        label: str = "label", classes: Sequence[str] | None = None, max_length: int = 128, bucket: int = 50,
        val_share: float = 0.1, test_share: float = 0.1, split_seed: int = 0, inherited: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, max_length, bucket, classes, val_share, test_share, split_seed, inherited)
        self.name, self.subset, self.text, self.label = name, subset, text, label

    def rows(self) -> dict[str, list[Any]]:
        try:
            import datasets
        except ImportError:
            raise ValueError("dataset: the hub's data sets need an extra: pip install 'hydratune[hub]'") from None
        datasets.disable_progress_bars()
        try:
            found = datasets.load_dataset(self.name, self.subset)
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"dataset.name={self.name}: could not be had from the hub ({said})") from None
        result = {}
        for part, names in ALIASES.items():
            for own in (n for n in names if n in found):
                rows = self._rows(found[own], own)
                if rows:
                    result[part] = rows
        if "train" not in result:
            raise ValueError(f"dataset.name={self.name}: has no train part; parts: {', '.join(found)}")
        return result

    def _rows(self, table: Any, part: str) -> list[tuple[str, str]]:
        for key, column in (("text", self.text), ("label", self.label)):
            if column not in table.column_names:
                known = ", ".join(table.column_names)
                raise ValueError(f"dataset.{key}={column}: {self.name} has no such column in {part}; it has {known}")
        names = getattr(table.features[self.label], "names", None)
        texts, labels = table[self.text], table[self.label]
        pairs = zip(texts, labels, strict=True)
        return [(str(t), names[c] if names else str(c)) for t, c in pairs if c is not None and not (names and c < 0)]
