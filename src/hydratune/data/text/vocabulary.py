"""Vocabularies learned from a corpus: WordPiece as BERT's, byte pairs as GPT-2's, and bytes alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KINDS = ("wordpiece", "bpe", "bytes")
TOKENS = {
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "bpe": {"pad": "<|pad|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
}
BYTES = 256 + len(set(TOKENS["bpe"].values()))  # tokens of bpe before the first merge


def learn(kind: str, vocab_size: int, lowercase: bool, texts: Iterable[str]) -> Any:
    """A PreTrainedTokenizerFast; the same texts give the same one."""
    import transformers

    names = TOKENS["wordpiece" if kind == "wordpiece" else "bpe"]
    special = list(dict.fromkeys(names.values()))
    if kind == "wordpiece":
        backend = _wordpiece(vocab_size, lowercase, list(texts), names, special)
    else:
        backend = _bytes(None if kind == "bytes" else vocab_size, texts, special)
    tokens = {f"{name}_token": token for name, token in names.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


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
