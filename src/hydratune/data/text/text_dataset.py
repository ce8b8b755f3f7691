"""What data sets of text have in common: a tokenizer, and sequences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.markdown import markdown_table
from hydratune.core.ragged import starts_of
from hydratune.core.task import Task
from hydratune.core.types import Backbone, Batch, Padded, Summary, TargetSpec, TextSpec
from hydratune.data.dataset import SPLITS, Dataset, WeightsHome
from hydratune.data.duplicates import Sample, check_option, duplicates
from hydratune.data.stream import Batches, Placement
from hydratune.data.text.text_files import digest_of, shown
from hydratune.data.text.text_stream import TextSplit, TextStream, as_cell
from hydratune.data.text.text_tables import Column, Form
from hydratune.data.text.tokenizer import Tokenizer, TokenizerRecipe

LONGEST = 2**20  # what noise and the order of samples have room for
KEPT = "tokenizer"  # in a run's directory
SEEN = 0.01  # share of unknown tokens from which on they are told of


class TextDataset(Dataset):
    """Base of the sets of text: a subclass says `texts()`, `encoded(split)`, `contents()` and its class names.

    max_length: tokens of a sequence at most, special ones included. bucket: see TextStream. duplicates: tell or refuse
    what is both in train and in another split, and what has two labels.
    """

    task: Any
    unit = "texts"  # what its samples are called

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, max_length: int = 128, bucket: int = 50, split_seed: int = 0,
        duplicates: str = "tell", inherited: WeightsHome | None = None, sampling: str = "shuffle",
    ) -> None:  # fmt: skip
        """split_seed: of what is divided off train, or generated.

        inherited: where the weights of init_from lie, whose tokenizer this is then.
        """
        super().__init__(task, sampling)
        if not 4 <= max_length <= LONGEST:
            raise ValueError(f"dataset.max_length={max_length}: from 4 to {LONGEST} tokens")
        if not 1 <= bucket <= LONGEST:
            raise ValueError(f"dataset.bucket={bucket}: from 1, which is a plain shuffle, to {LONGEST} batches' worth")
        check_option(duplicates)
        self.split_seed = split_seed
        self.recipe, self.max_length, self.bucket, self.inherited = tokenizer, max_length, bucket, inherited
        self.duplicates = duplicates
        self._splits: dict[str, TextSplit] = {}  # as far as they have been asked for: texts are tokenized once

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Of train, for a tokenizer to be trained on."""

    @abstractmethod
    def encoded(self, name: str) -> TextSplit:
        """The samples of "train", "val" or "test"."""

    @abstractmethod
    def contents(self) -> Iterable[str]:
        """All that the splits are made of, in words."""

    @abstractmethod
    def compared(self) -> Mapping[str, Sequence[Sample]]:
        """What may be there twice, by split."""

    def doubts(self) -> list[str]:
        """What is likely to be a mistake in the labels, a sentence each."""
        return []

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.contents())

    def digest(self) -> str:
        """Of the contents."""
        return self._digest

    def class_names(self) -> Sequence[str]:
        return ()

    def numbers_asked(self) -> TargetSpec | None:
        """Of numbers that are predicted."""
        return None

    def pairs(self) -> bool:
        """Whether a sample is two texts."""
        return False

    def left_alone(self) -> Sequence[Path]:
        """Files that lie beside its parts, and are none of them."""
        return ()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.recipe.tokenizer(self.texts, self.digest(), self.tokenizer_beside())

    def tokenizer_beside(self) -> str | None:
        """Directory of the tokenizer that the first weights were trained with; None where there is none."""
        if self.inherited is None:
            return None
        for home in self.inherited.directories():
            for directory in (home / KEPT, home):
                if (directory / "tokenizer.json").is_file():
                    return str(directory)
            if self.inherited.wanted == "auto" and not home.exists():
                return str(home)  # a name of the hub
        if self.inherited.required and self.recipe.name is None:
            raise ValueError(
                f"init_from={self.inherited.wanted}: no tokenizer lies beside these weights; dataset.tokenizer.name "
                "should be the one that they were trained with (a directory, or a name of the hub)"
            )
        return None

    def kept_at(self) -> Path | None:
        return None if self.tokenizer.home is None else Path(self.tokenizer.home)

    def files(self) -> str:
        """The contents; and the tokenizer, where it neither follows from them nor from the weights."""
        return self.digest() if self.recipe.name is None else f"{self.digest()} {self.tokenizer.digest}"

    def spec(self) -> TextSpec:
        own = self.tokenizer
        if self.pairs() and not own.parts_pairs:
            raise ValueError(
                "dataset.text: this tokenizer puts nothing between the texts of a pair; kind=wordpiece does"
            )
        names = tuple(self.class_names())
        return TextSpec(
            own.vocab_size, self.max_length, own.special, names, own.token_bytes, self.pairs(), self.numbers_asked()
        )

    def supplied(self) -> Mapping[str, Any]:
        return {"text_spec": self.spec(), "question": self.task.question}

    def example(self, body: Backbone) -> Padded:
        """[1, 4] tokens that are not special."""
        number = next(i for i in range(self.tokenizer.vocab_size) if i not in self.tokenizer.special.values())
        values = torch.full((1, 4), number)
        return Padded(values, torch.tensor([4]), values.new_empty(1, 0))

    def split(self, name: str) -> TextSplit:
        if name not in self._splits:
            split = self.encoded(name)
            if not len(split):
                raise ValueError(f"dataset: the {name} split is empty")
            if split.per_token and split.labels is not None and not (split.labels >= 0).any():
                raise ValueError(f"dataset: no word of the {name} split has a token, so that none could be scored")
            self._splits[name] = split.summarised(split.summary, self._unknown(split))
        return self._splits[name]

    def check(self, test: bool) -> Sequence[str]:
        sentences = [*self.doubts(), *duplicates(self.compared(), self.unit, self.duplicates)]
        for name in SPLITS if test else SPLITS[:2]:
            self.split(name)
        return sentences

    def _unknown(self, split: TextSplit) -> str:
        own = self.tokenizer.special
        if own.get("unk") in (None, own.get("eos"), own.get("pad")):  # GPT-2's is all of them
            return ""
        count = int((split.tokens == own["unk"]).sum())
        words = max(len(split.tokens) - 2 * len(split) * ("cls" in own), 1)
        return f"{count / words:.0%} of the tokens are unknown to this tokenizer" if count > SEEN * words else ""

    def text_columns(self) -> tuple[list[Column], Form]:
        """Where the texts of a table are, and how it is written."""
        return [("text", "text")], Form()

    def split_summary(self, split: TextSplit) -> str:
        return split.summary

    def stream(self, split: TextSplit, body: Backbone, batches: Batches, place: Placement) -> TextStream:
        return TextStream(split, self.spec(), self.task, self.tokenizer, self.sampled(batches), place, self.bucket)

    def show_batch(self, batch: Batch) -> Mapping[str, Summary]:
        """The first samples as the network sees them, and what is asked of them."""
        rows = []
        inputs: Padded = batch.inputs
        for i in range(min(len(batch.ids), 8)):
            tokens = inputs.values[i, : inputs.lengths[i]].tolist()
            text = self.tokenizer.decode(tokens, special=True)
            rows.append((as_cell(text), as_cell(self._asked(batch.targets[i]))))
        return {"batch": markdown_table(("text", "asked for"), rows)}

    def _asked(self, wanted: Tensor) -> str:
        """The targets of one sample in words."""
        names, numbers = self.class_names(), self.numbers_asked()
        if numbers is not None:
            columns = zip(numbers.names, wanted.tolist(), numbers.mean, numbers.std, strict=True)
            return ", ".join(f"{name} {value * std + mean:.4g}" for name, value, mean, std in columns)
        if wanted.is_floating_point():
            return ", ".join(name for name, there in zip(names, wanted.tolist(), strict=True) if there)
        if names:
            return " ".join(names[t] for t in wanted.flatten().tolist() if t >= 0)
        return self.tokenizer.decode([t for t in wanted.tolist() if t >= 0], special=True)

    def keep(self, directory: Path, export: bool = False) -> str:
        home = directory if export else directory / KEPT
        self.tokenizer.save(home, self.max_length, words=export and self.task.question == "token")
        other = [shown(Path(p.name)) for p in self.left_alone()]
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        message = f"; left alone, as they are called neither train, val nor test: {', '.join(other[:3])}{more}"
        return f"tokenizer: {self.tokenizer.message}; {self.tokenizer.vocab_size:,} tokens{message if other else ''}"

    def of_texts(self, texts: Sequence[str | tuple[str, str]], labels: Tensor) -> TextSplit:
        """A sample of each text, or pair of texts."""
        tokens, lengths, cut = self.tokenizer.encode(texts, self.max_length)
        empty = sum(not (text if isinstance(text, str) else "".join(text)).strip() for text in texts)
        summary = [f"{len(texts):,} texts"]
        summary += [f"{empty:,} of them empty"] if empty else []
        summary += [f"{cut:,} of them cut at {self.max_length} tokens"] if cut else []
        return TextSplit(tokens, starts_of(lengths), lengths, labels, summary=", ".join(summary))

    def of_sentences(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[int]]) -> TextSplit:
        """A sample of each sentence; a tag belongs to the first token of its word."""
        tokens, lengths, begins = self.tokenizer.encode_words(sentences, self.max_length)
        counts = torch.tensor([len(t) for t in tags])
        flat = torch.tensor([tag for sentence in tags for tag in sentence])
        offset = starts_of(counts).repeat_interleave(lengths)
        labels = torch.where(begins >= 0, flat[(offset + begins).clamp_min(0)], -100).int()
        lost = len(flat) - int((begins >= 0).sum())
        summary = f"{len(sentences):,} sentences of {len(flat):,} words"
        if lost:
            summary += f"; {lost:,} words lie beyond {self.max_length} tokens, or have none, and are not scored"
        return TextSplit(tokens, starts_of(lengths), lengths, labels, per_token=True, summary=summary)
