"""The part of a network below a cut, over a stream: computed for every batch, or read from a cache of its outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hydratune.data.stream import Stream
from hydratune.engine.state import digest
from hydratune.freeze.cost import PhaseCost
from hydratune.models.network import Network
from hydratune.record.features import FeatureStore
from hydratune.runtime import Runtime
from hydratune.types import Batch, Features, Phase


@dataclass(frozen=True)
class Trunk:
    """groups[:cut] over a stream. `cached`: their outputs, [distinct views * N, ...]."""

    network: Network
    cut: int
    runtime: Runtime
    stream: Stream
    cached: Tensor | None = None

    def batches(self, first_step: int, last_step: int) -> Iterator[tuple[Batch, Features]]:
        """The batches of these steps with the trunk's outputs."""
        if self.cached is not None:
            yield from ((batch, batch.inputs) for batch in self.stream.cached(self.cached, first_step, last_step))
            return
        for batch in self.stream.batches(first_step, last_step):
            yield batch, self._outputs(batch.inputs)

    def once(self) -> Iterator[tuple[Batch, Features]]:
        """Every sample once."""
        if self.cached is not None:
            yield from ((batch, batch.inputs) for batch in self.stream.once_cached(self.cached))
            return
        for batch in self.stream.once():
            yield batch, self._outputs(batch.inputs)

    def _outputs(self, inputs: Tensor) -> Features:
        if not self.cut:
            return inputs
        with torch.no_grad(), self.runtime.autocast():
            return self.network.forward(inputs, 0, self.cut)


@dataclass(frozen=True)
class Caches:
    """Which phases read their trunk's outputs from a store; train, val: what those samples are made of."""

    phases: frozenset[Phase]
    store: FeatureStore
    train: str
    val: str


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

    mode: freeze.cache. row_bytes: of one sample's features, per phase; None where they are not one tensor. data: what
    the "train" and "val" samples are made of. Never changes what is trained. Raises ValueError where a cache was asked
    for that would.
    """
    views, steps = train_stream.augment.distinct, train_stream.steps_per_epoch
    said: list[str] = []
    chosen: dict[Phase, int] = {}
    for phase, cost, row in zip(phases, costs, row_bytes, strict=True):
        if mode in ("memory", "disk") and phase.cut and views is None:
            raise ValueError(
                f"freeze.cache={mode}: training sees every image anew, so no output of the trunk comes twice; "
                "dataset.augment.views=4 fixes four views of each, cache=off leaves the augmentation as it is"
            )
        reason = None
        if mode == "off":
            reason = "off"
        elif not phase.cut:
            reason = "no: no trunk below the cut"
        elif row is None:
            reason = "no: the trunk's output is not one tensor"
        elif views is None:
            reason = "no: augmentation is random; dataset.augment.views=K would fix K views"
        elif mode == "auto" and phase.last_step - phase.first_step <= steps * views:
            reason = "no: nothing is seen twice in this phase"
        elif mode == "auto" and 2 * _read_seconds(row, runtime) > cost.trunk_seconds / train_stream.batch_size:
            reason = "no: reading would cost as much as computing"
        elif row is not None:
            chosen[phase] = row * len(train_stream.split) * (views or 1)
        said.append(reason or "")
    largest = max(chosen.values(), default=0)
    memory = mode == "memory" or (mode == "auto" and largest <= runtime.cache_memory_mb * 2**20)
    limit = (runtime.cache_memory_mb if memory else runtime.cache_disk_mb) * 2**20
    if mode == "auto" and largest > limit:
        said = [s or f"no: {largest / 2**20:,.0f} MB are more than runtime.cache_disk_mb" for s in said]
        chosen = {}
    where = "memory" if memory else "disk"
    told = [s or f"{where}, {chosen[p] / 1e6:,.1f} MB" for s, p in zip(said, phases, strict=True)]
    store = FeatureStore(where, limit, directory)
    return Caches(frozenset(chosen), store, data["train"], data["val"]), told


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
def cached(trunk: Trunk, store: FeatureStore, data: str) -> Trunk:
    """The trunk with its outputs at hand: read from the store, or computed once and kept there.

    data: what the stream's samples are made of. The groups below the cut must be in eval.
    """
    groups = trunk.network.groups[: trunk.cut]
    weights = digest([t for g in groups for t in (*g.module.parameters(), *g.module.buffers())])
    names = [g.name for g in groups]
    stream, runtime = trunk.stream, trunk.runtime
    key = store.key(weights, names, data, stream.seed if stream.augment.per_sample else 0, stream.augment.distinct,
                    str(runtime.chosen), runtime.torch_device.type, torch.__version__)  # fmt: skip
    rows = len(stream.split) * (stream.augment.distinct or 0)

    def parts() -> Iterator[Tensor]:
        for inputs in stream.distinct(stream.batch_size):
            with runtime.autocast():
                yield trunk.network.forward(inputs, 0, trunk.cut)

    features = store.find(key)
    if features is None:
        features = store.keep(key, rows, parts())
    if store.where == "memory":
        features = features.to(runtime.torch_device)
    return Trunk(trunk.network, trunk.cut, runtime, stream, features)
