"""Tokenizers: trained from a corpus, inherited from the run that weights come from, or Hugging Face's by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.paths import cache_home, expanded
from hydratune.core.secrets import hidden
from hydratune.data.text import vocabulary

SPECIAL = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
CONFIG = "tokenizer_config.json"
CHUNK = 4096  # texts that are encoded at a time,
LETTERS = 2**24  # or of so many letters together
LARGEST = 10_000_000  # vocabulary
GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast", None)  # classes whose tokenizer.json says all


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """fast: a PreTrainedTokenizerFast of transformers; home: its directory, or name; said: where it comes from."""

    fast: Any
    home: str
    message: str

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Number of each special token that there is: pad, unk, cls, sep, mask, bos, eos."""
        numbers = {name: getattr(self.fast, f"{name}_token_id") for name in SPECIAL}
        return {name: number for name, number in numbers.items() if number is not None}

    @cached_property
    def filler(self) -> int:
        """What stands where a sequence is filled up, and is neither attended to nor counted."""
        return next((self.special[n] for n in ("pad", "eos", "unk") if n in self.special), 0)

    @cached_property
    def vocab_size(self) -> int:
        return len(self.fast)

    @cached_property
    def digest(self) -> str:
        """Of all that decides what a text becomes."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> tuple[int, ...]:
        """UTF-8 bytes that each token stands for, none for special ones; empty where tokens are not made of bytes."""
        if not self._of_bytes:
            return ()
        words = self.fast.convert_ids_to_tokens(list(range(self.vocab_size)))
        sizes = [len(word) for word in words]  # a character is a byte there
        for number, added in self.fast.added_tokens_decoder.items():  # but for these, which stand for themselves
            sizes[number] = 0 if added.special else len(added.content.encode())
        return tuple(sizes)

    @property
    def parts_pairs(self) -> bool:
        """Whether it puts something between two texts."""
        return bool(self._backend.num_special_tokens_to_add(True) > self._backend.num_special_tokens_to_add(False))

    def otherwise(self, kind: str | None, lowercase: bool | None) -> str:
        """In what it differs from a recipe's wishes; empty where it does not, or none was made."""
        own = "wordpiece" if type(self._backend.model).__name__ == "WordPiece" else "another kind"
        if self._of_bytes:
            own = "bytes" if self.vocab_size <= 256 + len(set(self.special.values())) else "bpe"
        lowers = getattr(self._backend.normalizer, "lowercase", False)
        wishes = [f"kind={kind}"] if kind not in (None, own) else []
        wishes += [f"lowercase={str(lowercase).lower()}"] if lowercase not in (None, lowers) else []
        what = f"{own}, {'lower case' if lowers else 'with capitals'}"
        return f"it is {what}: {' and '.join(wishes)} asks for another pretraining" if wishes else ""

    @property
    def _of_bytes(self) -> bool:
        return type(self._backend.decoder).__name__ == "ByteLevel"

    @cached_property
    def _backend(self) -> Any:
        """Without truncation and padding, which are the data set's to decide."""
        backend = type(self.fast.backend_tokenizer).from_str(self.fast.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode(
        self, texts: Iterable[str | tuple[str, str]], longest: int | None, wrap: bool = True
    ) -> tuple[Tensor, Tensor, int]:
        """(tokens one after the other [S] int32, their number in each text [N], how many texts were cut).

        texts: or pairs of them. longest: what lies beyond so many tokens is left out, the special ones at the ends
        kept. wrap: with those.
        """
        parts: list[Tensor] = []
        lengths: list[int] = []
        cut = 0
        for found in self._encoded(texts, longest, wrap):
            ids = [e.ids or ([self._nothing] if wrap else []) for e in found]  # one of no tokens still is a sample
            parts.append(torch.tensor([i for own in ids for i in own], dtype=torch.int32))
            lengths += map(len, ids)
            cut += sum(bool(e.overflowing) for e in found)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32), torch.tensor(lengths), cut

    def encode_words(self, sentences: Sequence[Sequence[str]], longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences that are words already: (tokens, lengths, the word [S] that each token begins, -1 for others).

        They are joined by spaces, as the texts were that a tokenizer was made for; one of bytes takes the space before
        a word as a part of it, so the first word has one too (as with transformers' add_prefix_space).
        """
        tokens: list[int] = []
        lengths: list[int] = []
        begins: list[int] = []
        lead = " " if self._of_bytes else ""
        texts = (lead + " ".join(words) for words in sentences)
        read = iter(sentences)
        for encodings in self._encoded(texts, longest, wrap=True):
            for found, words in zip(encodings, read, strict=False):
                starts = list(accumulate((len(word) + 1 for word in words), initial=len(lead) - 1))  # of the spaces
                last = -1
                for special, (first, end) in zip(found.special_tokens_mask, found.offsets, strict=True):
                    word = -1 if special else bisect(starts, max(end - 1, first)) - 1
                    begins.append(word if word > last else -1)
                    last = max(word, last)
                ids = found.ids or [self._nothing]
                begins += [-1] * (len(ids) - len(found.ids))
                tokens += ids
                lengths.append(len(ids))
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(lengths), torch.tensor(begins)

    def _encoded(self, texts: Iterable[Any], longest: int | None, wrap: bool) -> Iterator[list[Any]]:
        """What the library makes of them, some at a time."""
        extra = self._backend.num_special_tokens_to_add(False) if wrap else 0
        if longest is not None and longest > extra:
            self._backend.enable_truncation(longest)
        try:
            for chunk in _chunks(texts):
                yield self._backend.encode_batch(chunk, add_special_tokens=wrap)
        finally:
            self._backend.no_truncation()

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return self.fast.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def save(self, directory: Path, longest: int, words: bool = False) -> None:
        """As transformers reads it. longest: tokens that it cuts to, unless it was told more. words: it is given words
        alone, before which one of bytes then puts the space that `encode_words` does.
        """
        self.fast.save_pretrained(directory)
        more: dict[str, Any] = {"add_prefix_space": True} if words and self._of_bytes else {}
        known = json.loads((directory / CONFIG).read_text())
        if not longest <= known.get("model_max_length", math.inf) <= 1e9:
            more["model_max_length"] = longest
        (directory / CONFIG).write_text(json.dumps({**known, **more}, indent=2, ensure_ascii=False))
        backend = json.loads((directory / "tokenizer.json").read_text())
        if "add_prefix_space" in more and backend["pre_tokenizer"]["type"] == "ByteLevel":
            backend["pre_tokenizer"]["add_prefix_space"] = True
            (directory / "tokenizer.json").write_text(json.dumps(backend, indent=2, ensure_ascii=False))

    @property
    def _nothing(self) -> int:
        return next((self.special[n] for n in ("eos", "unk", "cls") if n in self.special), self.filler)


class TokenizerRecipe:
    """name: of the hub, or a directory; null: that of the run which the weights come from, else one trained on train.

    Of one that is trained: kind: wordpiece (BERT's; null means this), bpe (GPT-2's, of bytes) or bytes (no merges at
    all). vocab_size: special tokens included. lowercase: for wordpiece, accents go too; null: no.
    """

    def __init__(
        self, name: str | None = None, kind: str | None = None, vocab_size: int = 8000, lowercase: bool | None = None
    ) -> None:
        if kind not in (None, *vocabulary.KINDS):
            raise ValueError(f"dataset.tokenizer.kind={kind}: one of {', '.join(vocabulary.KINDS)}")
        least = vocabulary.BYTES if kind == "bpe" else 100
        if not least <= vocab_size <= LARGEST:
            raise ValueError(f"dataset.tokenizer.vocab_size={vocab_size}: from {least} to {LARGEST:,} tokens")
        self.name, self.kind, self.vocab_size, self.lowercase = name, kind, vocab_size, lowercase

    def tokenizer(self, texts: Callable[[], Iterable[str]], files: str, inherited: str | None) -> Tokenizer:
        """texts: what one is trained on where there is none, of which `files` is a digest; trained once.

        Raises ValueError where the one that is named is not the one that the weights were trained with.
        """
        library()
        before = None if inherited is None else load(inherited, "inherited, that of the weights")
        if self.name is not None:
            named = load(self.name, f"{self.name}")
            if before is not None and before.digest != named.digest:
                raise ValueError(
                    f"dataset.tokenizer.name={self.name}: is not the tokenizer that the weights of init_from were "
                    f"trained with ({inherited}); dataset.tokenizer.name=null takes that one"
                )
            return named
        if before is None:
            return self._trained(texts, files)
        other = before.otherwise(self.kind, self.lowercase)
        return replace(before, message=f"{before.message}; {other}") if other else before

    def _trained(self, texts: Callable[[], Iterable[str]], files: str) -> Tokenizer:
        from importlib.metadata import version

        kind, lowercase = self.kind or "wordpiece", bool(self.lowercase)
        parts = [kind, self.vocab_size, lowercase, files, version("tokenizers"), version("hydratune")]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        home = cache_home() / "tokenizers" / key
        if not (home / "tokenizer.json").is_file():
            home.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=".partial-"))
            try:
                vocabulary.learn(kind, self.vocab_size, lowercase, texts()).save_pretrained(partial)
                with contextlib.suppress(OSError):  # another process was quicker with the same
                    os.rename(partial, home)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return load(str(home), f"{kind}{', lower case' * lowercase}, trained on train")


def load(name: str, message: str) -> Tokenizer:
    """Raises ValueError where there is none, or one that is not made of data alone."""
    transformers = library()
    home = expanded(name)
    name = str(home) if home.is_dir() else name
    try:
        if (home / "tokenizer.json").is_file() and _class_of(home) in GENERIC:
            fast = transformers.PreTrainedTokenizerFast.from_pretrained(name)
        else:  # of the model's kind, which knows what tokens are special
            fast = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"dataset.tokenizer.name={name} (model.name, unless it is given): no tokenizer could be read there "
            f"({unread(name, error)})"
        ) from None
    if getattr(fast, "backend_tokenizer", None) is None:
        raise ValueError(f"dataset.tokenizer.name={name}: is no tokenizer of the `tokenizers` library")
    return Tokenizer(fast, name, message)


def unread(name: str, error: Exception) -> str:
    """Why the library could not read a directory or name of the hub: its first sentence, as the others are advice."""
    message = " ".join(hidden(str(error)).split()).split(". ")[0][:300]
    if expanded(name).is_dir():
        return message
    of_hub = not name.startswith((".", "/", "~")) and name.count("/") <= 1
    return f"no such directory, and it could not be had from the hub: {message}" if of_hub else "no such directory"


def _class_of(home: Path) -> str | None:
    """What tokenizer_config.json calls it; that of the model's kind where there is one."""
    config = home / CONFIG
    named = json.loads(config.read_text()).get("tokenizer_class") if config.is_file() else None
    return named or ("of the model" if (home / "config.json").is_file() else None)


def library() -> Any:
    """transformers; what it would say of sequences that are too long is decided here."""
    try:
        import transformers
    except ImportError:
        raise ValueError("dataset: text needs the text extra: pip install 'hydratune[text]'") from None
    transformers.logging.set_verbosity_error()
    return transformers


def _chunks(texts: Iterable[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    letters = 0
    for text in texts:
        chunk.append(text)
        letters += len(text) if isinstance(text, str) else sum(map(len, text))
        if len(chunk) == CHUNK or letters > LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk
