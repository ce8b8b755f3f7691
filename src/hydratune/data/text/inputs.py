"""Texts to be predicted, with the tokenizer that the network was trained with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.ragged import inside, side_by_side, starts_of, width_of
from hydratune.core.types import Backbone, Batch, Padded, TargetSpec, TextSpec
from hydratune.data.duplicates import Sample
from hydratune.data.inputs import Item
from hydratune.data.stream import Batches, Placement
from hydratune.data.text.text_dataset import TextDataset
from hydratune.data.text.text_files import lines_of, parts_of, read_text
from hydratune.data.text.text_stream import TextSplit
from hydratune.data.text.text_tables import TABLES, cell, table_rows
from hydratune.data.text.tokenizer import Tokenizer

WORD = re.compile(r"\w+|[^\w\s]")  # of a text whose words are tagged
PLAIN = (".txt", ".md", ".text")
NAMES = ("text", "texts", "sentence", "sentences", "review", "text1", "text2", "premise", "hypothesis")  # of columns

Text = str | tuple[str, str]


@dataclass(frozen=True)
class GivenTexts(TextSplit):
    """faults: number -> why; a text in memory has none."""

    faults: Mapping[int, str] = field(default_factory=dict)


class TextInputs(TextDataset):
    """spec: of the data that the network was trained on, but for its tokens."""

    chunk = 4096

    def __init__(self, like: TextDataset, spec: TextSpec, tokenizer: Tokenizer) -> None:
        super().__init__(like.task, like.recipe, spec.max_length)
        self._known, self._tokenizer, (self._columns, self._form) = spec, tokenizer, like.text_columns()
        self._texts: list[str] = []  # of the latest split

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def class_names(self) -> Sequence[str]:
        return self._known.class_names

    def numbers_asked(self) -> TargetSpec | None:
        return self._known.targets

    def pairs(self) -> bool:
        return self._known.pairs

    def texts(self) -> Iterable[str]:
        return ()

    def contents(self) -> Iterable[str]:
        return ()

    def compared(self) -> Mapping[str, Sequence[Sample]]:
        return {}

    def encoded(self, name: str) -> TextSplit:
        raise ValueError(f"inputs: have no {name} split")

    # ---- what is given

    def items(self, given: Sequence[Any]) -> list[Item]:
        """Tables with the columns of `dataset.text`, files with a text in each line, folders of those; texts; pairs."""
        return [item for one in given for item in self._items(one)]

    def _items(self, given: Any) -> Iterator[Item]:
        if isinstance(given, tuple | list):
            yield self._item(tuple(given))
        elif isinstance(given, Path):
            for files in parts_of(given, (*TABLES, *PLAIN), labelled=False).files.values():
                for file in files:
                    yield from map(self._item, self._read(file))
        elif isinstance(given, str):
            yield self._item(given)
        else:
            raise ValueError(f"inputs: a {type(given).__name__} is no text")

    def _item(self, text: Text) -> Item:
        parts = (text,) if isinstance(text, str) else text
        if len(parts) != (2 if self.pairs() else 1) or not all(isinstance(part, str) for part in parts):
            wanted = "pairs of texts" if self.pairs() else "single texts"
            raise ValueError(f"inputs: the network was trained on {wanted}")
        names = [str(column) for _, column in self._columns]
        if len(names) != len(parts) or any(name.isdecimal() for name in names):
            names = ["text"] if len(parts) == 1 else ["text", "text 2"]
        return Item(text, dict(zip(names, parts, strict=True)))

    def _read(self, path: Path) -> Iterator[Text]:
        if path.suffix.lower() in PLAIN:
            if self.pairs():
                raise ValueError(f"inputs={path}: pairs of texts come from a table; the lines of this are single ones")
            yield from (line for line in lines_of(read_text(path)) if line.strip())
            return
        for number, (where, values) in enumerate(table_rows(path, self._form, self._columns)):
            named = zip(values, self._columns, strict=True)
            texts = [cell(value, f"{name} of {where}") for value, (_, name) in named]
            if not number and not self._form.header and all(text.strip().lower() in NAMES for text in texts):
                continue  # names, though the tables that it was trained on had none
            yield texts[0] if len(texts) == 1 else (texts[0], texts[1])

    # ---- for other programs

    def packed(self, *tensors: Tensor) -> Padded:
        values, attended = tensors
        return Padded(values, attended.sum(1), values.new_empty(values.shape[0], 0))

    def unpacked(self, features: Padded) -> dict[str, Tensor]:
        there = inside(features.lengths, features.values.shape[1])
        return {"input_ids": features.values, "attention_mask": there.long()}

    def example_inputs(self, count: int) -> Mapping[str, Tensor]:
        """Token numbers [count, T] and 1 where they count [count, T], as transformers' tokenizers give them."""
        draws = torch.Generator().manual_seed(0)
        length = min(self.max_length, 16)
        values = torch.randint(0, self.tokenizer.vocab_size, (count, length), generator=draws)
        lengths = torch.arange(count) % (length // 2) + length // 2
        lengths[0] = length
        attended = (torch.arange(length) < lengths.unsqueeze(1)).long()
        return {"input_ids": torch.where(attended > 0, values, self.tokenizer.filler), "attention_mask": attended}

    def made_how(self) -> Mapping[str, Any]:
        return {"input_ids": "by the tokenizer beside this file, cut at max_length", "pad": self.tokenizer.filler}

    # ---- what is made of it

    def split_of(self, items: Sequence[Item]) -> GivenTexts:
        texts = [item.content for item in items]
        self._texts = [text if isinstance(text, str) else "\n".join(text) for text in texts]
        if self.task.question == "token":
            words = [[text[a:b] for a, b in _spans(text)] for text in self._texts]
            split = self.of_sentences(words, [[0] * len(own) for own in words])
        else:
            wrap = self.task.question != "causal"  # what is to go on has no end
            tokens, lengths, _ = self.tokenizer.encode(texts, self.max_length, wrap)
            split = TextSplit(tokens, starts_of(lengths), lengths, self._no_labels(len(texts)))
        return GivenTexts(split.tokens, split.starts, split.lengths, split.labels, split.per_token)

    def _no_labels(self, count: int) -> Tensor:
        if self.task.kind == "labels":
            return torch.zeros(count, len(self.class_names()))
        numbers = self.numbers_asked()
        return torch.zeros(count, dtype=torch.int64) if numbers is None else torch.zeros(count, len(numbers.names))

    def words(self, sample: int) -> tuple[str, list[tuple[int, int]]]:
        """(a text of the latest split, where each of its words begins and ends)"""
        return self._texts[sample], _spans(self._texts[sample])

    def eval_views(
        self, split: TextSplit, body: Backbone, batches: Batches, place: Placement, count: int = 1
    ) -> Iterator[list[Batch]]:
        """In order of length; the task changes nothing of a text."""
        self.check_views(count)
        order = split.lengths.argsort(stable=True)
        for ids in order.tensor_split(max(-(-len(split) // batches.size), 1)):
            starts, lengths = split.starts[ids], split.lengths[ids]
            width = width_of(lengths)
            values = side_by_side(split.tokens, starts, lengths, width, self.tokenizer.filler).long()
            assert split.labels is not None
            targets = split.labels[ids]
            if split.per_token:
                targets = side_by_side(split.labels, starts, lengths, width, -100).long()
            inputs = Padded(values, lengths, values.new_empty(len(values), 0))
            moved = (t.to(place.device) for t in (*inputs, targets, ids))
            values, lengths, asked, targets, ids = moved
            yield [Batch(Padded(values, lengths, asked), targets, ids)]


def _spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in WORD.finditer(text)]


def text_inputs(like: TextDataset, spec: TextSpec) -> TextInputs:
    """Raises ValueError where no tokenizer lies beside the weights."""
    inherited = like.tokenizer_beside()
    if inherited is None and like.recipe.name is None:
        wanted = like.inherited.wanted if like.inherited else None
        raise ValueError(
            f"init_from={wanted}: no tokenizer lies beside these weights; dataset.tokenizer.name= the one that they "
            "were trained with"
        )
    tokenizer = like.recipe.tokenizer(tuple, "", inherited)
    known = replace(spec, vocab_size=tokenizer.vocab_size, special=tokenizer.special, token_bytes=tokenizer.token_bytes)
    return TextInputs(like, known, tokenizer)
