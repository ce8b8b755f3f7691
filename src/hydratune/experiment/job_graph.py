"""What a job needs before it can run, and what follows it: one graph, for a single run as for a sweep.

A run of init_from=auto needs its pretraining, which needs data that can be used; the winner of a sweep is tested, and
the best jobs are averaged, once they are complete. Each of these is a node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unmet(ValueError):
    """Something that was needed cannot be had."""


@dataclass(frozen=True)
class Node:
    """kind: what is to be done; key: what determines it, by which it is done once for all that need it.

    payload: what it is done with. failure: how its failure is told to what needs it, with {} for why.
    """

    kind: str
    key: str
    payload: Any = field(compare=False)
    needs: tuple[Node, ...] = ()
    failure: str = "{}"


class JobGraph(Generic[T]):
    """Does nodes in the order of their needs, each once."""

    def __init__(self, do: Callable[[Node], T]) -> None:
        """do: raises Unmet where it fails in a way that those who need it should be told of."""
        self._do = do
        self._done: dict[tuple[str, str], T | Unmet] = {}

    def have(self, node: Node) -> T:
        """What the node gives, done now unless it was before. Raises Unmet, also for what it needs."""
        known = self._done.get((node.kind, node.key))
        if isinstance(known, Unmet):
            raise known
        if known is None:
            for need in node.needs:
                try:
                    self.have(need)
                except Unmet as error:
                    raise Unmet(need.failure.format(error)) from None
            try:
                known = self._done[node.kind, node.key] = self._do(node)
            except Unmet as error:
                self._done[node.kind, node.key] = error
                raise
        return known

    def failure(self, node: Node) -> str | None:
        """Why the node cannot be had; None where it is."""
        try:
            self.have(node)
        except Unmet as error:
            return str(error)
        return None
