"""Entities out of tags, as seqeval reads them by default: the conlleval script's rules for IOB, IOB2 and IOBES."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor

Entity = tuple[int, str, int, int]  # sample, type, first word, last word; words counted over all samples


def entities(tags: Tensor, sample: Tensor, names: Sequence[str]) -> set[Entity]:
    """tags: [W] numbers of `names`, such as B-PER and O; sample: [W] which text each of the words belongs to.

    A tag without a prefix, such as PER, counts as I-PER.
    """
    split = [name.split("-", 1) if name[1:2] == "-" else ("O" if name == "O" else "I", name) for name in names]
    kinds = sorted({kind for prefix, kind in split if prefix != "O"})
    prefix_of = torch.tensor([ord(prefix) for prefix, _ in split])
    kind_of = torch.tensor([kinds.index(kind) if prefix != "O" else -1 for prefix, kind in split])
    prefix, kind = prefix_of[tags], kind_of[tags]
    first = torch.ones(len(tags), dtype=torch.bool)  # of its text
    first[1:] = sample[1:] != sample[:-1]
    before = torch.where(first, ord("O"), prefix.roll(1))
    kind_before = torch.where(first, -1, kind.roll(1))
    inside, inside_before = prefix != ord("O"), before != ord("O")
    changes = kind != kind_before
    begins = inside & (_among(prefix, "BS") | _among(before, "ES") | ~inside_before | changes)
    # Ends are seen at the word after; the last word of a text ends what is open.
    ends_before = inside_before & (_among(before, "ES") | _among(prefix, "BS") | ~inside | changes)
    last = torch.ones(len(tags), dtype=torch.bool)
    last[:-1] = first[1:]
    ends = torch.where(last, inside, ends_before.roll(-1))
    starts, stops = begins.nonzero().flatten().tolist(), ends.nonzero().flatten().tolist()
    return {(int(sample[a]), kinds[int(kind[a])], a, b) for a, b in zip(starts, stops, strict=True)}


def scores(wanted: Set[Entity], given: Set[Entity]) -> dict[str, tuple[float, float, float, int]]:
    """(precision, recall, F1, number of true ones) of `all` together and of each type."""
    kinds = sorted({e[1] for e in wanted | given})
    result = {"all": _score(wanted, given)}
    for kind in kinds:
        result[kind] = _score({e for e in wanted if e[1] == kind}, {e for e in given if e[1] == kind})
    return result


def _score(wanted: Set[Entity], given: Set[Entity]) -> tuple[float, float, float, int]:
    hits = len(wanted & given)
    precision, recall = hits / max(len(given), 1), hits / max(len(wanted), 1)
    return precision, recall, 2 * hits / max(len(wanted) + len(given), 1), len(wanted)


def _among(prefix: Tensor, letters: str) -> Tensor:
    return torch.stack([prefix == ord(letter) for letter in letters]).any(0)
