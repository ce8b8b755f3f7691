"""Freeze strategies: pure functions from layer groups and steps to phases.

Each class is one YAML under conf/freeze; the keys that a YAML sets are the constructor's parameters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from hydratune.layer_groups import parameter_names
from hydratune.types import LayerGroup, Phase


def phase(groups: Sequence[LayerGroup], first: int, last: int, trainable: Iterable[str], name: str = "") -> Phase:
    """A phase in which `trainable` train; its cut is the first group that owns one of them."""
    wanted = frozenset(trainable)
    owners = [i for i, names in enumerate(parameter_names(groups)) if wanted.intersection(names)]
    if not owners:
        raise ValueError("freeze: nothing would train")
    return Phase(first, last, wanted, cut=owners[0], name=name)


def from_group(groups: Sequence[LayerGroup], first_group: int) -> list[str]:
    return [name for names in parameter_names(groups)[first_group:] for name in names]


class Nothing:
    """freeze=none: everything trains."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        return [phase(groups, 0, num_steps, from_group(groups, 0), "all")]


class HeadOnly:
    """freeze=head_only, a linear probe: only the head trains."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        return [phase(groups, 0, num_steps, from_group(groups, len(groups) - 1), "head")]


class LastGroups:
    """freeze=last_groups: the last `groups` layer groups and the head train."""

    def __init__(self, groups: int | float = 1) -> None:
        """groups: a number of groups, or a share of them between 0 and 1."""
        if groups < 0 or (isinstance(groups, float) and groups > 1):
            raise ValueError(f"freeze.groups={groups}: a number of groups, or a share of them between 0.0 and 1.0")
        self.groups = groups

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        body = len(groups) - 1
        count = round(self.groups * body) if isinstance(self.groups, float) else min(self.groups, body)
        return [phase(groups, 0, num_steps, from_group(groups, body - count), f"last {count} groups")]


class Pattern:
    """freeze=pattern: parameters by name. Each pattern is a group's name or a regular expression."""

    def __init__(self, train: Sequence[str] = (), freeze: Sequence[str] = ()) -> None:
        """train: what trains (all, where empty); freeze: taken away from that."""
        if not train and not freeze:
            raise ValueError("freeze=pattern needs freeze.train or freeze.freeze, such as 'freeze.train=[layer4,head]'")
        self.train, self.freeze = tuple(train), tuple(freeze)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        every = set(from_group(groups, 0))
        train = set().union(*(self._match(groups, p, "train") for p in self.train)) if self.train else every
        frozen = set().union(*(self._match(groups, p, "freeze") for p in self.freeze))
        return [phase(groups, 0, num_steps, train - frozen, "pattern")]

    @staticmethod
    def _match(groups: Sequence[LayerGroup], pattern: str, key: str) -> set[str]:
        by_group = dict(zip((g.name for g in groups), parameter_names(groups), strict=True))
        names = [name for group in by_group.values() for name in group]
        try:
            found = set(by_group.get(pattern) or [n for n in names if re.search(pattern, n)])
        except re.error as error:
            raise ValueError(f"freeze.{key}={pattern}: not a regular expression ({error})") from None
        if not found:
            near = difflib.get_close_matches(pattern, [*by_group, *names], n=1, cutoff=0.4)
            raise ValueError(
                f"freeze.{key}={pattern} matches no parameter"
                + (f"; nearest: {near[0]}" if near else "")
                + f". Groups: {', '.join(by_group)}. Parameters: {', '.join(names[:12])}"
                + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            )
        return found
