"""Freeze strategies with one phase: pure functions from layer groups and steps to phases.

Each class is one YAML under conf/freeze; the keys that a YAML sets are the constructor's parameters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from hydratune.core.layer_groups import norm_layers, parameter_names
from hydratune.core.types import LayerGroup, Phase
from hydratune.freeze.phases import count_of, from_group, head, phase

AUTO = "auto"


class NoFreeze:
    """freeze=none: everything trains."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        return [phase(groups, 0, num_steps, from_group(groups, 0), "all")]


class HeadOnly:
    """freeze=head_only, a linear probe: only the head trains."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        return [phase(groups, 0, num_steps, head(groups), "head")]


class LastGroups:
    """freeze=last_groups: the last `groups` layer groups and the head train."""

    def __init__(self, groups: int | float = 1) -> None:
        """groups: a number of groups, or a share of them between 0.0 and 1.0."""
        self.groups = groups
        count_of(groups, 0)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        body = len(groups) - 1
        count = count_of(self.groups, body)
        return [phase(groups, 0, num_steps, from_group(groups, body - count), f"last {count} groups")]


class FirstGroups:
    """freeze=first_groups: the first `groups` layer groups are frozen, the rest trains (arXiv 2211.09359)."""

    def __init__(self, groups: int | float = 1) -> None:
        """groups: a number of groups, or a share of them between 0.0 and 1.0."""
        self.groups = groups
        count_of(groups, 0)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        count = count_of(self.groups, len(groups) - 1)
        return [phase(groups, 0, num_steps, from_group(groups, count), f"all but the first {count} groups")]


class Surgical:
    """freeze=surgical: one contiguous block of groups and the head train (arXiv 2210.11466).

    The first block suits a shift of the input, the middle one of features, the last one of the output.
    """

    def __init__(self, first: int | str = 0, last: int | str | None = None) -> None:
        """first, last: the block's ends, both within it, by name or by number from 0; last=null: one group.

        first=auto: the group whose gradient is largest in relation to its weights, before training (Auto-RGN in the
        article, which scales rates by it).
        """
        if first == AUTO and last is not None:
            raise ValueError(f"freeze.last={last}: freeze.first=auto chooses one group")
        self.first, self.last = first, last

    @property
    def undecided(self) -> bool:
        """Whether it waits for the gradients of the first batches."""
        return self.first == AUTO

    def decided(self, norms: Mapping[str, float]) -> Surgical:
        """norms: of the groups below the head, each one's gradient over that of its weights."""
        return Surgical(max(norms, key=lambda name: norms[name]))

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        if self.undecided:  # it may be any of them, so that nothing is sure to be frozen
            return [phase(groups, 0, num_steps, from_group(groups, 0), "one group, by its gradient, and head")]
        first = self._index(groups, self.first, "first")
        last = first if self.last is None else self._index(groups, self.last, "last")
        if last < first:
            raise ValueError(f"freeze.last={self.last}: comes before freeze.first={self.first}")
        block = [name for names in parameter_names(groups)[first : last + 1] for name in names]
        label = groups[first].name if first == last else f"{groups[first].name} to {groups[last].name}"
        return [phase(groups, 0, num_steps, [*block, *head(groups)], f"{label} and head")]

    @staticmethod
    def _index(groups: Sequence[LayerGroup], wanted: int | str, key: str) -> int:
        names = [g.name for g in groups]
        if isinstance(wanted, str) and wanted in names:
            return names.index(wanted)
        if isinstance(wanted, int) and -len(names) <= wanted < len(names):
            return wanted % len(names)
        near = difflib.get_close_matches(str(wanted), names, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]}. " if near else ""
        more = ", or auto" if key == "first" else ""
        raise ValueError(
            f"freeze.{key}={wanted}: no such group; {hint}0 to {len(names) - 1}, or {', '.join(names)}{more}"
        )


class BiasOnly:
    """freeze=bias_only, BitFit: biases and the head train (arXiv 2106.10199)."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        sizes = {g.names[k]: p.ndim for g in groups for k, p in g.module.named_parameters()}
        biases = [n for n in from_group(groups, 0) if n.rpartition(".")[2].endswith("bias") and sizes[n] == 1]
        return [_beside_head(groups, num_steps, biases, "biases")]


class NormOnly:
    """freeze=norm_only: the affine parameters of normalisation layers and the head train (arXiv 2003.00152)."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        affine = [name for group in groups for _, names in norm_layers(group) for name in names]
        return [_beside_head(groups, num_steps, affine, "norms")]


def _beside_head(groups: Sequence[LayerGroup], num_steps: int, names: Sequence[str], what: str) -> Phase:
    below = set(names).difference(head(groups))
    label = f"{what} and head" if below else f"head (this network has no {what} below it)"
    return phase(groups, 0, num_steps, [*below, *head(groups)], label)


class Pattern:
    """freeze=pattern: parameters by name. Each pattern is a group's name or a regular expression."""

    def __init__(self, train: Sequence[str] = (), freeze: Sequence[str] = ()) -> None:
        """train: what trains (all, where empty); freeze: taken away from that. Without either: the head alone."""
        self.train, self.freeze = tuple(train), tuple(freeze)

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]:
        if not self.train and not self.freeze:
            return [phase(groups, 0, num_steps, head(groups), "head (no pattern given)")]
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
