"""Tokenizers: trained from a corpus, inherited from the run that weights come from, or Hugging Face's by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.record.features import cache_home

KINDS = ("wordpiece", "bpe", "bytes")
SPECIAL = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
TOKENS = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"pad": "<|pad|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
}
CHUNK = 4096  # texts that are encoded at a time


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """fast: a PreTrainedTokenizerFast of transformers; home: its directory, or name; said: where it comes from."""

    fast: Any
    home: str
    said: str

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Number of each special token that there is: pad, unk, cls, sep, mask, bos, eos."""
        numbers = {name: getattr(self.fast, f"{name}_token_id") for name in SPECIAL}
        found = {name: number for name, number in numbers.items() if number is not None}
        return found if "pad" in found else {**found, "pad": found.get("eos", found.get("unk", 0))}

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
        if type(self._backend.decoder).__name__ != "ByteLevel":
            return ()
        words = self.fast.convert_ids_to_tokens(list(range(self.vocab_size)))
        special = set(self.fast.all_special_ids)
        return tuple(0 if i in special else len(word) for i, word in enumerate(words))  # a character is a byte there

    @cached_property
    def _backend(self) -> Any:
        """Without truncation and padding, which are the data set's to decide."""
        backend = type(self.fast.backend_tokenizer).from_str(self.fast.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode(self, texts: Iterable[str], longest: int | None, wrap: bool = True) -> tuple[Tensor, Tensor]:
        """(tokens one after the other [S] int32, their number in each text [N]).

        longest: what lies beyond so many tokens is left out, the special ones at the ends kept. wrap: with those.
        """
        parts: list[Tensor] = []
        lengths: list[int] = []
        extra = self._backend.num_special_tokens_to_add(False) if wrap else 0
        if longest is not None and longest > extra:
            self._backend.enable_truncation(longest)
        try:
            for chunk in _chunks(texts):
                found = [e.ids for e in self._backend.encode_batch(chunk, add_special_tokens=wrap)]
                found = [ids or [self._filler] for ids in found]  # a text of no tokens still is a sample
                parts.append(torch.tensor([i for ids in found for i in ids], dtype=torch.int32))
                lengths += map(len, found)
        finally:
            self._backend.no_truncation()
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32), torch.tensor(lengths)

    def encode_words(self, sentences: Sequence[Sequence[str]], longest: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sentences that are words already: (tokens, lengths, the word [S] that each token begins, -1 for others)."""
        tokens: list[int] = []
        lengths: list[int] = []
        begins: list[int] = []
        self._backend.enable_truncation(longest)
        try:
            for chunk in _chunks(sentences):
                for found in self._backend.encode_batch(chunk, is_pretokenized=True):
                    words, before = found.word_ids, [None, *found.word_ids]
                    tokens += found.ids
                    lengths.append(len(found.ids))
                    begins += [
                        -1 if word is None or word == last else word for word, last in zip(words, before, strict=False)
                    ]
        finally:
            self._backend.no_truncation()
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(lengths), torch.tensor(begins)

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return self.fast.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def save(self, directory: Path) -> None:
        self.fast.save_pretrained(directory)

    @property
    def _filler(self) -> int:
        return next(self.special[n] for n in ("eos", "unk", "cls", "pad") if n in self.special)


class TokenizerRecipe:
    """name: of the hub, or a directory; null: that of the run which the weights come from, else one trained on train.

    kind: wordpiece (BERT's), bpe (GPT-2's, of bytes) or bytes (no merges at all). vocab_size: of one that is trained,
    special tokens included. lowercase: for wordpiece, accents go too.
    """

    def __init__(
        self, name: str | None = None, kind: str = "wordpiece", vocab_size: int = 8000, lowercase: bool = True
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"dataset.tokenizer.kind={kind}: one of {', '.join(KINDS)}")
        if vocab_size < 100:
            raise ValueError(f"dataset.tokenizer.vocab_size={vocab_size}: at least 100")
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
        return before or self._trained(texts, files)

    def _trained(self, texts: Callable[[], Iterable[str]], files: str) -> Tokenizer:
        from importlib.metadata import version

        parts = [self.kind, self.vocab_size, self.lowercase, files, version("tokenizers"), version("hydratune")]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        home = cache_home() / "tokenizers" / key
        if not (home / "tokenizer.json").is_file():
            home.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=".partial-"))
            try:
                _train(self.kind, self.vocab_size, self.lowercase, texts()).save_pretrained(partial)
                with contextlib.suppress(OSError):  # another process was quicker with the same
                    os.rename(partial, home)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return load(str(home), f"{self.kind}, trained on train")


def load(name: str, said: str) -> Tokenizer:
    """Raises ValueError where there is none, or one that is not made of data alone."""
    transformers = library()
    try:
        if (Path(name) / "tokenizer.json").is_file():
            fast = transformers.PreTrainedTokenizerFast.from_pretrained(name)
        else:
            fast = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset.tokenizer.name={name}: no tokenizer could be read there ({reason})") from None
    if getattr(fast, "backend_tokenizer", None) is None:
        raise ValueError(f"dataset.tokenizer.name={name}: is no tokenizer of the `tokenizers` library")
    return Tokenizer(fast, name, said)


def library() -> Any:
    """transformers; what it would say of sequences that are too long is decided here."""
    try:
        import transformers
    except ImportError:
        raise ValueError("dataset: text needs the text extra: pip install 'hydratune[text]'") from None
    transformers.logging.set_verbosity_error()
    return transformers


def _train(kind: str, vocab_size: int, lowercase: bool, texts: Iterable[str]) -> Any:
    """A PreTrainedTokenizerFast; the same texts give the same one."""
    names = TOKENS["wordpiece" if kind == "wordpiece" else "bpe"]
    special = list(dict.fromkeys(names.values()))
    if kind == "wordpiece":
        backend = _wordpiece(vocab_size, lowercase, list(texts), names, special)
    else:
        backend = _bytes(None if kind == "bytes" else vocab_size, texts, special)
    tokens = {f"{name}_token": token for name, token in names.items()}
    return library().PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def _wordpiece(
    vocab_size: int, lowercase: bool, texts: Sequence[str], names: Mapping[str, str], special: Sequence[str]
) -> Any:
    """BERT's: pieces within a word begin with ##."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    def empty(vocabulary: dict[str, int] | None = None) -> Any:
        backend = Tokenizer(models.WordPiece(vocabulary or {}, unk_token=names["unk"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return backend

    backend = empty()
    words: set[str] = set()
    for text in texts:
        words.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    # The trainer numbers the letters within words as it meets them, in an order of its own; ties between pieces go by
    # these numbers. Given beforehand, as if they were special, they have the same ones each time.
    letters = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *letters], show_progress=False, limit_alphabet=2**20
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    backend = empty(vocabulary)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{names['cls']} $A {names['sep']}",
        pair=f"{names['cls']} $A {names['sep']} $B:1 {names['sep']}:1",
        special_tokens=[(names[n], vocabulary[names[n]]) for n in ("cls", "sep")],
    )
    return backend


def _bytes(vocab_size: int | None, texts: Iterable[str], special: Sequence[str]) -> Any:
    """GPT-2's: every byte is a token, and what is often seen together; None: the bytes alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or len(alphabet) + len(special), special_tokens=list(special), initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return backend


def _chunks(texts: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
