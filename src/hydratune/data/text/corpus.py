"""Text without labels, for language modelling: packed into sequences of equal length."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.paths import cache_home, expanded
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.data.dataset import SPLITS, check_share, completed
from hydratune.data.duplicates import Sample
from hydratune.data.text.text_dataset import TextDataset
from hydratune.data.text.text_files import Parts, lines_of, parts_of, read_text, shown
from hydratune.data.text.text_stream import TextSplit
from hydratune.data.text.text_tables import TABLES
from hydratune.data.text.tokenizer import TokenizerRecipe
from hydratune.record.feature_store import FeatureStore

KEPT = 20 * 2**30  # bytes of token numbers that are kept, of all corpora
PIECE = 2**22  # letters of a document that are tokenized at a time
FEW = 20  # documents; with fewer, each of them gives its end to val and test


class Corpus(TextDataset):
    """Base of the corpora: a subclass says `documents()`.

    Documents are tokenized one after the other and cut into sequences of max_length, whatever document a token belongs
    to; the token numbers lie in a file that is mapped into memory, made once. val_share, test_share: of the documents,
    or of the end of each where there are few, as far as the source has no such part of its own.
    """

    unit = "documents"

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, val_share: float = 0.05, test_share: float = 0.05,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(task, tokenizer, **options)
        check_share("val_share", val_share)
        check_share("test_share", test_share)
        self.val_share, self.test_share = val_share, test_share

    @abstractmethod
    def documents(self) -> dict[str, list[str]]:
        """Of train, and of val and test where the source tells them apart."""

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        return completed(self.documents(), self.val_share, self.test_share, self._divided)

    def _divided(self, documents: list[str], share: float, name: str) -> tuple[list[str], list[str]]:
        if len(documents) < FEW:
            cuts = [round(len(d) * (1 - share)) for d in documents]
            pairs = list(zip(documents, cuts, strict=True))
            return [d[:cut] for d, cut in pairs], [d[cut:] for d, cut in pairs]
        g = torch.Generator().manual_seed(derive_seed(self.split_seed, "documents", name))
        taken = set(torch.randperm(len(documents), generator=g)[: max(round(share * len(documents)), 1)].tolist())
        kept = [d for i, d in enumerate(documents) if i not in taken]
        return kept, [d for i, d in enumerate(documents) if i in taken]

    def texts(self) -> Iterable[str]:
        return self._parts["train"]

    def contents(self) -> Iterable[str]:
        return (f"{name} {document}" for name in SPLITS for document in self._parts[name])

    def compared(self) -> Mapping[str, Sequence[Sample]]:
        return {name: [(document.strip(), None) for document in self._parts[name]] for name in SPLITS}

    def part(self, name: str) -> str:
        """What a split is made of, to compare with other compressors of it."""
        return "\n".join(self._parts[name])

    def encoded(self, name: str) -> TextSplit:
        tokens = self._tokens(name)
        if self.task.question == "causal":
            # Every token but the first is predicted once; the last sequence may be shorter.
            count = len(tokens) - 1
            if count < 1:
                raise ValueError(f"dataset: the {name} split has {len(tokens)} tokens, too few to predict one")
            starts = torch.arange(0, count, self.max_length)
            lengths = (count - starts).clamp_max(self.max_length)
            return TextSplit(tokens, starts, lengths, following=True)
        special = torch.tensor(list(self.tokenizer.special.values()), dtype=torch.int32)
        if all(torch.isin(piece, special).all() for piece in tokens.split(PIECE)):
            raise ValueError(
                f"dataset: the {name} split has no words to hide, in {len(self.part(name)):,} letters of text"
            )
        starts = torch.arange(0, len(tokens), self.max_length)
        return TextSplit(tokens, starts, (len(tokens) - starts).clamp_max(self.max_length))

    def _tokens(self, name: str) -> Tensor:
        """[S] int32 of all documents, mapped from a file that is made the first time."""
        own = self.tokenizer
        wrapped = {"cls", "sep"} <= own.special.keys() and self.task.question != "causal"
        settings = [self.digest(), own.digest, name, wrapped, self.max_length if wrapped else None]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
        store = FeatureStore("disk", KEPT, cache_home() / "tokens")
        known = store.find(key)
        if known is not None:
            return known
        tokens = self._packed(self._parts[name], wrapped)
        return store.keep(key, len(tokens), iter([tokens])) if len(tokens) else tokens

    def _packed(self, documents: Sequence[str], wrapped: bool) -> Tensor:
        """A token between documents; with `wrapped` each sequence of max_length has its own beginning and end."""
        own = self.tokenizer
        pieces = [list(_pieces(document)) for document in documents if document.strip()]
        tokens, sizes, _ = own.encode((piece for own in pieces for piece in own), None, wrap=False)
        counts = torch.tensor([len(own) for own in pieces], dtype=torch.int64)
        owner = torch.arange(len(pieces)).repeat_interleave(counts)
        lengths = torch.zeros(len(pieces), dtype=torch.int64).index_add_(0, owner, sizes.long())
        between = own.special.get("sep" if wrapped else "eos")
        if between is not None:
            ends = lengths.cumsum(0) + torch.arange(len(lengths))
            joined = torch.empty(len(tokens) + len(lengths), dtype=torch.int32)
            there = torch.ones(len(joined), dtype=torch.bool)
            there[ends] = False
            joined[there], joined[ends] = tokens, between
            tokens = joined[:-1]
        if not wrapped:
            return tokens
        inner = self.max_length - 2
        rows = [
            torch.cat([t.new_tensor([own.special["cls"]]), t, t.new_tensor([own.special["sep"]])])
            for t in tokens.split(inner)
        ]
        return torch.cat(rows) if rows else tokens


def _pieces(document: str) -> Iterator[str]:
    """A very long document, cut at ends of lines: the library keeps far more of a text than its tokens meanwhile."""
    first = 0
    while len(document) - first > PIECE:
        end = document.find("\n", first + PIECE) + 1 or len(document)
        yield document[first:end]
        first = end
    if first < len(document):
        yield document[first:]


class TextCorpus(Corpus):
    """A text file, or a folder of them, perhaps with parts called train, val and test."""

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, path: str, documents: str = "file", bucket: int = 1,
        **options: Any,
    ) -> None:  # fmt: skip
        """documents: what is one of them, a whole `file` or a `line`."""
        if documents not in ("file", "line"):
            raise ValueError(f"dataset.documents={documents}: file or line")
        super().__init__(task, tokenizer, bucket=bucket, **options)
        self.path, self.kind = expanded(path), documents

    def documents(self) -> dict[str, list[str]]:
        if self.path.suffix.lower() in (*TABLES, ".parquet"):
            raise ValueError(
                f"dataset.path={shown(self.path)}: is a table, whose columns would all be read as prose; "
                "its texts alone are needed, a line each in a .txt file (dataset.documents=line)"
            )
        parts = {part: [lines_of(read_text(f)) for f in files] for part, files in self._files.files.items()}
        if self.kind == "line":
            return {k: [line for lines in v for line in lines if line.strip()] for k, v in parts.items()}
        return {k: ["\n".join(lines) for lines in v] for k, v in parts.items()}  # whatever ended them in the file

    @cached_property
    def _files(self) -> Parts:
        return parts_of(self.path, (".txt", ".md", ".rst", ".text"), labelled=False)

    def left_alone(self) -> Sequence[Path]:
        return self._files.left_alone


class PythonDocumentation(Corpus):
    """The documentation of the language that comes with Python itself: about half a million characters of English."""

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, max_length: int = 64, bucket: int = 1, **options: Any
    ) -> None:
        super().__init__(task, tokenizer, max_length=max_length, bucket=bucket, **options)

    def documents(self) -> dict[str, list[str]]:
        from pydoc_data.topics import topics

        return {"train": [text for _, text in sorted(topics.items())]}
