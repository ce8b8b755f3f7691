"""The part of a network below its cuts, over a stream: computed for every batch, or read from a cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

from hydratune.core.batching import check_batch, count
from hydratune.core.types import Batch, Features, Padded, Phase
from hydratune.data.stream import Rows, Stream
from hydratune.distributed import signals
from hydratune.distributed.runtime import Runtime
from hydratune.engine.feature_table import LEAF, Table, as_rows, form_of
from hydratune.engine.memory import in_parts
from hydratune.engine.state import digest
from hydratune.freeze.cost import PhaseCost
from hydratune.models.network import Network
from hydratune.record.feature_store import FeatureStore


@dataclass(frozen=True)
class Trunk:
    """The groups below some cuts, over a stream: what each trial takes on from.

    cuts: ascending. cached: for some of them, the outputs of groups[:cut], a row for each of the stream's views of each
    sample.
    """

    network: Network
    cuts: Sequence[int]
    runtime: Runtime
    stream: Stream
    cached: Mapping[int, Table] = field(default_factory=dict)

    def batches(self, first_step: int, last_step: int) -> Iterator[tuple[Batch, Mapping[int, Features]]]:
        """The batches of these steps, with the outputs of groups[:cut] for every cut."""
        return self._joined(self.stream.batches(first_step, last_step), self.stream.rows(first_step, last_step))

    def eval_batches(self) -> Iterator[tuple[Batch, Mapping[int, Features]]]:
        """Every sample once."""
        return self._joined(self.stream.eval_batches(), self.stream.eval_rows())

    def _joined(self, batches: Iterator[Batch], rows: Iterator[Rows]) -> Iterator[tuple[Batch, Mapping[int, Features]]]:
        """Only what is needed is drawn from: images where something is computed, rows where something is cached."""
        for number, (batch, features) in enumerate(self._paired(batches, rows)):
            if not number:  # of a stream, all batches are made alike
                check_batch(batch)
            yield batch, features

    def _paired(self, batches: Iterator[Batch], rows: Iterator[Rows]) -> Iterator[tuple[Batch, Mapping[int, Features]]]:
        if not self.cached:
            for batch in batches:
                yield batch, self._outputs(batch.inputs, None)
        elif self.cached.keys() >= set(self.cuts):
            for own in rows:
                features = self._outputs(None, own.at)
                yield self.stream.labelled(features[self.cuts[0]], own), features
        else:
            for batch, own in zip(batches, rows, strict=True):
                yield batch, self._outputs(batch.inputs, own.at)

    def _outputs(self, inputs: Features, at: Tensor | None) -> dict[int, Features]:
        """Each cut's features computed from those of the one before it, or read."""
        result: dict[int, Features] = {}
        features, reached = inputs, 0
        for cut in self.cuts:
            if cut in self.cached:
                assert at is not None
                features = self.cached[cut].read(at, self.runtime.torch_device)
            elif cut:
                features = in_parts(
                    partial(self._run, reached, cut), features, 0 if self.runtime.shares else count(features)
                )
            result[cut], reached = features, cut
        return result

    @torch.no_grad()
    def _run(self, first: int, last: int, features: Features) -> Features:
        with self.runtime.autocast():
            return self.network.forward(features, first, last)


@dataclass(frozen=True)
class Caches:
    """Which phases read their trunk's outputs from a store; train, val: what those samples are made of."""

    phases: frozenset[Phase]
    store: FeatureStore
    train: str
    val: str

    @staticmethod
    def joined(several: Sequence[Caches]) -> Caches | None:
        """Of trials that share a stream: cached where one of them has it so, on disk where one needs that."""
        if not several:
            return None
        phases = frozenset().union(*(c.phases for c in several))
        chosen = next((c for c in several if c.phases and c.store.where == "disk"), several[0])
        return replace(chosen, phases=phases)


def plan_caches(
    mode: str,
    phases: Sequence[Phase],
    costs: Sequence[PhaseCost],
    row_bytes: Sequence[int | None],
    train_stream: Stream,
    runtime: Runtime,
    directory: Path,
    data: Mapping[str, str],
) -> tuple[Caches, list[str]]:
    """(which phases read cached features, what the freeze report says of each).

    mode: freeze.cache. row_bytes: of one sample's features, per phase; None where no table holds such. data: what
    the "train" and "val" samples are made of. Never changes what is trained. Raises ValueError where a cache was asked
    for that would.
    """
    views, steps = train_stream.views, train_stream.steps_per_epoch
    reasons: list[str] = []
    chosen: dict[Phase, int] = {}
    for phase, cost, row in zip(phases, costs, row_bytes, strict=True):
        if mode in ("memory", "disk") and phase.cut and views is None:
            raise ValueError(
                f"freeze.cache={mode}: no output of the trunk comes twice, as {train_stream.anew}; "
                "cache=off leaves that as it is"
            )
        reason = None
        if mode == "off":
            reason = "off"
        elif not phase.cut:
            reason = "no: no trunk below the cut"
        elif row is None:
            reason = "no: no table holds what the trunk gives"
        elif views is None:
            reason = f"no: {train_stream.anew}"
        elif mode == "auto" and phase.last_step - phase.first_step <= steps * views:
            reason = "no: nothing is seen twice in this phase"
        elif mode == "auto" and 2 * _read_seconds(row, runtime) > cost.trunk_seconds / train_stream.batch_size:
            reason = "no: reading would cost as much as computing"
        elif row is not None:
            chosen[phase] = row * len(train_stream.split) * (views or 1)
        reasons.append(reason or "")
    largest = max(chosen.values(), default=0)
    memory = mode == "memory" or (mode == "auto" and largest <= runtime.cache_memory_mb * 2**20)
    limit = (runtime.cache_memory_mb if memory else runtime.cache_disk_mb) * 2**20
    if mode == "auto" and largest > limit:
        reasons = [s or f"no: {largest / 2**20:,.0f} MB are more than runtime.cache_disk_mb" for s in reasons]
        chosen = {}
    where = "memory" if memory else "disk"
    shown = [s or f"{where}, {chosen[p] / 1e6:,.1f} MB" for s, p in zip(reasons, phases, strict=True)]
    store = FeatureStore(where, limit, directory)
    return Caches(frozenset(chosen), store, data["train"], data["val"]), shown


def _read_seconds(row_bytes: int, runtime: Runtime) -> float:
    """Seconds to gather one row; least of three."""
    rows = max(min(2**26 // row_bytes, 4096), 16)
    table = torch.zeros(rows, row_bytes, dtype=torch.uint8, device=runtime.torch_device)
    ids = torch.randperm(rows, device=runtime.torch_device)[:128]
    times = []
    for _ in range(3):
        runtime.synchronize()
        started = time.perf_counter()
        table[ids]
        runtime.synchronize()
        times.append(time.perf_counter() - started)
    return min(times) / len(ids)


@torch.no_grad()
def cached(trunk: Trunk, cuts: Iterable[int], store: FeatureStore, data: str) -> Trunk:
    """The trunk with its outputs at `cuts` at hand: read from the store, or computed once and kept there.

    data: what the stream's samples are made of. The groups below the cuts must be in eval.
    """
    stream, runtime, network = trunk.stream, trunk.runtime, trunk.network
    kept = dict(trunk.cached)
    for cut in cuts:
        groups = network.groups[:cut]
        weights = digest([t for g in groups for t in (*g.module.parameters(), *g.module.buffers())])
        names = [g.name for g in groups]
        key = store.key(
            weights, names, data, stream.seed if stream.random else 0, stream.views, runtime.describe(),
            torch.__version__,
        )  # fmt: skip
        lengths = _row_lengths(trunk, cut)
        leaves = _found(store, key)
        form = _form(trunk, cut) if len(leaves) > 1 else LEAF
        if not leaves or form.num_leaves > len(leaves):
            computed = _computed(trunk, cut)
            first = next(computed)
            form = form_of(first)
            rows = len(stream.split) * (stream.views or 0) if lengths is None else int(lengths.sum())
            keys = [_leaf_key(key, i) for i in range(form.num_leaves)]
            try:
                leaves = store.keep_all(keys, rows, map(as_rows, chain([first], computed)))
            except OSError as error:
                print(f"warning: the trunk's outputs cannot be kept ({error}); they are computed for every batch")
                continue
        if store.where == "memory":
            leaves = [leaf.to(runtime.torch_device) for leaf in leaves]
            lengths = None if lengths is None else lengths.to(runtime.torch_device)
        kept[cut] = Table(leaves, form, lengths)
    return replace(trunk, cached=kept)


def _leaf_key(key: str, number: int) -> str:
    return f"{key}-{number}" if number else key


def _found(store: FeatureStore, key: str) -> list[Tensor]:
    """The tables that are kept of one trunk's outputs."""
    leaves: list[Tensor] = []
    while (leaf := store.find(_leaf_key(key, len(leaves)))) is not None:
        leaves.append(leaf)
    return leaves


def _form(trunk: Trunk, cut: int) -> TreeSpec:
    """The pytree that the features at the cut are; one leaf where they are a tensor, or padded sequences."""
    first = next(trunk.stream.unique_inputs(2))
    with trunk.runtime.autocast():
        return form_of(trunk.network.forward(first, 0, cut))


def _row_lengths(trunk: Trunk, cut: int) -> Tensor | None:
    """Of the features at the cut, where those still are sequences."""
    lengths = trunk.stream.row_lengths()
    if lengths is None:
        return None
    first = next(trunk.stream.unique_inputs(2))
    with trunk.runtime.autocast():
        return lengths if isinstance(trunk.network.forward(first, 0, cut), Padded) else None


def _computed(trunk: Trunk, cut: int) -> Iterator[Features]:
    for inputs in trunk.stream.unique_inputs(trunk.stream.batch_size):
        if trunk.runtime.world == 1 and (number := signals.asked()):  # the pass may take long, and can be made again
            raise signals.Stopped(number)
        with trunk.runtime.autocast():
            yield trunk.network.forward(inputs, 0, cut)
