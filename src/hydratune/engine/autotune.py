"""Which precision and memory layout computes fastest here: tried, not assumed, and remembered per machine."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from hydratune.core.batching import batch_rows
from hydratune.core.paths import cache_home
from hydratune.core.secrets import hidden
from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.core.types import Batch, LayerGroup
from hydratune.distributed.runtime import Numerics, Precision, Runtime
from hydratune.engine.evaluate import in_evaluation
from hydratune.freeze.cost import CostMeter
from hydratune.models.network import Network
from hydratune.optim.optimizers import OptimizerConfig
from hydratune.record.run import write_json

GAIN = 0.95  # a candidate replaces the plain one where it takes at most this share of its time
REPEATS = 5
SPREAD = 1.35  # median over least time of one candidate, above which something else is using the machine
ATTEMPTS = 2
LONGEST = 0.15  # seconds of a pass; where a whole batch would take longer, a part of it is tried
SAMPLES = 16  # on which costs are measured, at most
FEWEST = 4


def choose_precision(network: Network, task: Task, batch: Batch, runtime: Runtime, model: str) -> tuple[Precision, str]:
    """(the fastest candidate, how it was found) for full training steps on such batches.

    `model` identifies the network among others in the cache. Its weights are not touched. What is found while something
    else uses the machine is not remembered.
    """
    images = any(p.ndim == 4 for p in network.parameters().values())
    candidates = runtime.candidates(images)
    if len(candidates) == 1:
        return candidates[0], "asked for"
    device = runtime.describe()
    machine = (device["name"], device["threads"], torch.__version__, runtime.compile, runtime.keep_memory)
    key = f"{derive_seed(model, [list(t.shape) for t in tree_flatten(batch.inputs)[0]], *machine, *candidates):x}"
    path = cache_file()
    with _alone(path.with_suffix(".lock")):  # two probes at once would measure each other
        known = _read(path)
        if key in known:
            return Precision.parse(known[key]["chosen"]), f"probed earlier on this machine ({known[key]['seen']})"
        try:
            times, quiet = _quietly(lambda: _measure(network, task, batch, runtime, candidates))
        except (RuntimeError, ValueError) as error:
            # Training all of it on this batch may not fit, or not be possible (BatchNorm on one sample), where
            # training a part of it is.
            return candidates[0], f"could not be probed ({str(error).splitlines()[0]})"
        speed = {c: statistics.median(t) if quiet else min(t) for c, t in times.items()}
        best = min(speed, key=lambda c: speed[c])
        chosen = best if speed[best] <= GAIN * speed[candidates[0]] else candidates[0]
        seen = ", ".join(f"{c} {1000 * t:.1f} ms" for c, t in speed.items())
        if not quiet:
            pinned = Numerics(chosen, device["threads"]).overrides().rpartition(" ")[0]
            return chosen, f"probed on a busy machine, so not remembered ({seen}); {pinned} keeps this choice"
        with contextlib.suppress(OSError):  # nowhere to remember it: probed again next time
            write_json(path, {**_read(path), key: {"chosen": str(chosen), "seen": seen, "model": hidden(model)[:200]}})
        return chosen, f"probed ({seen})"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time; without a place for the lock, at once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


Times = dict[Precision, list[float]]


def _quietly(measure: Callable[[], Times]) -> tuple[Times, bool]:
    """(seconds of each candidate's passes, whether the machine did nothing else), of the first quiet attempt."""
    found: Times = {}
    for _ in range(ATTEMPTS):
        times = measure()
        if all(statistics.median(t) <= SPREAD * min(t) for t in times.values()):
            return times, True
        for candidate, seconds in times.items():
            found.setdefault(candidate, []).extend(seconds)
    return found, False


def _measure(network: Network, task: Task, batch: Batch, runtime: Runtime, candidates: Sequence[Precision]) -> Times:
    """Seconds of forward and backward passes, the candidates taking turns; hopeless ones leave early."""
    trials = {}
    for precision in candidates:
        modules = copy.deepcopy([g.module for g in network.groups])
        groups = [LayerGroup(g.name, m, g.names) for g, m in zip(network.groups, modules, strict=True)]
        trials[precision] = Network(groups).to(runtime.torch_device, precision.memory_format)
        for module in modules:
            module.requires_grad_(True).train()

    def seconds(precision: Precision, part: Batch) -> float:
        inputs = tree_map(lambda t: _laid_out(t, precision), part.inputs)
        started = _now(runtime)
        with runtime.choose(precision).autocast():
            outputs = trials[precision].forward(inputs)
        task.loss(outputs, part).total().backward()
        for parameter in trials[precision].parameters().values():
            parameter.grad = None
        return _now(runtime) - started

    few = _first(batch, FEWEST)
    each = min(seconds(candidates[0], few) for _ in range(2)) / len(few.ids)  # the first one plans its kernels
    part = _first(batch, max(int(LONGEST / each), FEWEST))
    times: Times = {c: [] for c in candidates}
    left = list(candidates)
    for turn in range(REPEATS + 1):
        for precision in left:
            spent = seconds(precision, part)
            if turn:
                times[precision].append(spent)
        if turn:
            quickest = min(min(times[c]) for c in left)
            left = [c for c in left if min(times[c]) <= 1.3 * quickest or c == candidates[0]]
    return times


def _first(batch: Batch, count: int) -> Batch:
    """At most `count` of its samples."""
    count = min(count, len(batch.ids))
    return batch_rows(batch, 0, count)


def update_speed(config: OptimizerConfig, runtime: Runtime) -> float:
    """Seconds that the optimizer takes for one element of a parameter; least of five, on a matrix of a million."""
    layer = nn.Linear(1024, 1024, bias=False).to(runtime.torch_device)
    group = LayerGroup("head", layer, {"weight": "weight"})
    optimizer = config.build([group], dict(layer.named_parameters()))
    times = []
    for _ in range(5):
        layer.weight.grad = torch.zeros_like(layer.weight)
        started = _now(runtime)
        optimizer.step()
        times.append(_now(runtime) - started)
    return min(times) / layer.weight.numel()


def cost_meter(network: Network, task: Task, batch: Batch, runtime: Runtime, config: OptimizerConfig) -> CostMeter:
    """Measures what phases of this network cost on such batches."""
    few = _first(batch, FEWEST)
    with torch.no_grad(), runtime.autocast(), in_evaluation([network]):
        started = _now(runtime)
        network.forward(few.inputs)
    each = (_now(runtime) - started) / len(few.ids)
    part = _first(batch, min(max(int(LONGEST / 2 / each), FEWEST), SAMPLES))

    def loss(outputs: Any) -> torch.Tensor:
        return task.loss(outputs, part).total()

    speed = update_speed(config, runtime)
    samples = len(part.ids)
    return CostMeter(network.groups, batch.inputs, loss, runtime.autocast, speed, runtime.synchronize, samples)


def _laid_out(tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
    return tensor.contiguous(memory_format=precision.memory_format) if tensor.ndim == 4 else tensor


def _now(runtime: Runtime) -> float:
    runtime.synchronize()
    return time.perf_counter()


def cache_file() -> Path:
    return cache_home() / "precision.json"


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
