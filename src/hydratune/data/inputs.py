"""Samples that come from elsewhere, to be predicted: nothing is known of them but what the network is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hydratune.core.types import Spec


@dataclass(frozen=True)
class Item:
    """content: a path, a text, a picture. columns: what its row of predictions begins with."""

    content: Any
    columns: Mapping[str, str]


class Inputs(Protocol):
    """What a data set makes of them; it is one itself, with the spec that the network was trained on."""

    chunk: int  # how many at most are made ready together

    def spec(self) -> Spec: ...

    def items(self, given: Sequence[Any]) -> list[Item]:
        """Of files, folders, texts or pictures. Raises ValueError for what is none of these."""
        ...

    def split_of(self, items: Sequence[Item]) -> Any:
        """A split for `eval_views`. Its `faults`: number -> why, for those that turn out to be unreadable."""
        ...

    def kept(self, item: Item, mask: Any) -> Any:
        """A predicted mask as a picture that fits the item's own."""
        ...
