"""What freezing saves: time and memory of a step down the ladder of trainable shares, and of a cached trunk.

    python scripts/bench/freeze.py [--models resnet18 vit] [--batch 64] [--repeats 5] [--only ladder memory cache]

ladder: all groups, the last half, the last quarter, the head. hydratune against a raw loop with requires_grad=False
and frozen layers in eval, timm's freeze() in the same raw loop, and Lightning's BaseFinetuning.freeze (which
BackboneFinetuning calls) in its Trainer. fp32, plain layout, SGD with momentum, batches in memory; all take turns in
one process. Beside it the step time that the freeze report estimates, and the forward pass alone.
memory: the largest resident size during three steps over that before them, each in a process of its own.
cache: 20 epochs of head_only over images in memory, the pass that fills the cache included, against the raw loop.

The vit is a ViT-Tiny for 32 px: patches of 4, six blocks, three heads, width 192.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from step import SPEC, Batches, Silent, network_of, ours, whole
from torch import nn

from hydratune.core.task import Monitor
from hydratune.core.types import Backbone, FreezeStrategy
from hydratune.data import stream as data_stream
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.distributed.runtime import Runtime, cpu_name
from hydratune.engine.autotune import cost_meter
from hydratune.engine.loop import train
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.freeze.strategies import HeadOnly, LastGroups, NoFreeze
from hydratune.models.network import Network, build_network
from hydratune.models.vision.torchvision_models import _vision_transformer
from hydratune.optim.optimizers import SGD
from hydratune.optim.schedules import Constant
from hydratune.record.feature_store import FeatureStore
from hydratune.record.run import Run
from hydratune.tasks.classification import Classification

RUNGS: dict[str, FreezeStrategy] = {
    "100%": NoFreeze(), "50%": LastGroups(0.5), "25%": LastGroups(0.25), "head": HeadOnly(),
}  # fmt: skip
STEPS = {"resnet18": 3, "vit": 6, "resnet20": 6, "simple_cnn": 60}


def build(name: str) -> Network:
    if name != "vit":
        return network_of(name)
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    source = VisionTransformer(32, 4, 6, 3, 192, 768)
    return build_network(Backbone(source, _vision_transformer(source)), nn.Linear(192, 10))


def frozen(network: Network, rung: str) -> tuple[nn.Module, list[nn.Module]]:
    """(the network as one module, its frozen groups) with nothing but what the rung trains requiring a gradient."""
    (phase,) = RUNGS[rung].phases(network.groups, 1)
    for name, parameter in network.parameters().items():
        parameter.requires_grad_(name in phase.trainable)
    return whole(network), [g.module for g in network.groups[: phase.cut]]


def raw(model: nn.Module, still: list[nn.Module], data: Batches, steps: int) -> Callable[[], float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    model.train()
    for module in still:
        module.eval()

    def run() -> float:
        started = time.perf_counter()
        for batch in data.batches(0, steps):
            F.cross_entropy(model(batch.inputs), batch.targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / steps

    return run


def timm_loop(network: Network, rung: str, data: Batches, steps: int) -> Callable[[], float]:
    from timm.utils import freeze

    (phase,) = RUNGS[rung].phases(network.groups, 1)
    model = whole(network)
    if phase.cut:
        freeze(model, [str(i) for i in range(phase.cut)])
    return raw(model, [], data, steps)


def lightning(network: Network, rung: str, data: Batches, steps: int) -> Callable[[], float]:
    import lightning as L
    from lightning.pytorch.callbacks import BaseFinetuning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    (phase,) = RUNGS[rung].phases(network.groups, 1)

    class Freeze(BaseFinetuning):
        def freeze_before_training(self, module: L.LightningModule) -> None:
            if phase.cut:
                self.freeze(list(module.model[: phase.cut]), train_bn=False)

        def finetune_function(self, *args: Any) -> None: ...

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = whole(network)
            self.started = self.ended = 0.0

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
            if index == 0:
                self.started = time.perf_counter()
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def on_train_batch_end(self, outputs: object, batch: object, index: int) -> None:
            self.ended = time.perf_counter()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01, momentum=0.9)

    def run() -> float:
        module = Module()
        pairs = [(b.inputs, b.targets) for b in data.batches(0, steps)]
        loader = torch.utils.data.DataLoader(pairs, batch_size=None)  # type: ignore[arg-type,var-annotated]
        trainer = L.Trainer(
            max_steps=steps, max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, logger=False, callbacks=[Freeze()],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        return (module.ended - module.started) / steps

    return run


def inference(network: Network, data: Batches, steps: int) -> Callable[[], float]:
    model = whole(network).eval()

    @torch.no_grad()
    def run() -> float:
        started = time.perf_counter()
        for batch in data.batches(0, steps):
            model(batch.inputs)
        return (time.perf_counter() - started) / steps

    return run


def ladder(models: list[str], rungs: list[str], batch_size: int, repeats: int) -> None:
    table = Table(
        title=f"ms per step, batch {batch_size}, median of {repeats}; {cpu_name()}, torch {torch.__version__}"
    )
    for column in ("model", "trains", "who", "ms", "x raw: median", "min", "max", "estimated / true"):
        table.add_column(column)
    for model in models:
        network = build(model)
        for rung in rungs:
            strategy, steps = RUNGS[rung], STEPS[model] * {"head": 5, "25%": 2}.get(rung, 1)
            data = Batches(batch_size, steps)
            runs: dict[str, Callable[[], float]] = {
                "raw loop": raw(*frozen(copy.copy(network.fork(0)), rung), data, steps),
                "hydratune": ours(network.fork(0), data, steps, strategy),
                "timm freeze": timm_loop(network.fork(0), rung, data, steps),
                "Lightning": lightning(network.fork(0), rung, data, steps),
                "inference": inference(network.fork(0), data, steps),
            }
            times: dict[str, list[float]] = {name: [] for name in runs}
            estimates = []
            meter_of = network.fork(0)
            for turn in range(repeats + 1):
                for name, run in runs.items():
                    seconds = run()
                    if turn:  # the first turn warms up
                        times[name].append(seconds)
                meter = cost_meter(
                    meter_of, Classification(), data.list[0], Runtime(precision="fp32"), SGD(0.01, momentum=0.9)
                )
                if turn:
                    estimates.append(meter.phase(strategy.phases(meter_of.groups, 1)[0]).seconds)
            ratio = statistics.median(e / t for e, t in zip(estimates, times["hydratune"], strict=True))
            for name, seen in times.items():
                ratios = [t / r for t, r in zip(seen, times["raw loop"], strict=True)]
                table.add_row(
                    model, rung, name, f"{1000 * statistics.median(seen):.1f}", f"{statistics.median(ratios):.3f}",
                    f"{min(ratios):.3f}", f"{max(ratios):.3f}", f"{ratio:.2f}" if name == "hydratune" else "",
                )  # fmt: skip
            to_inference = [t / i for t, i in zip(times["hydratune"], times["inference"], strict=True)]
            print(f"{model} {rung}: hydratune / inference {statistics.median(to_inference):.3f}", flush=True)
    Console(width=120).print(table)


def measure_memory(who: str, model: str, rung: str, batch_size: int) -> None:
    """Print the bytes by which the resident size grew at its largest."""
    network, data = build(model), Batches(batch_size, 3)
    makers = {
        "raw loop": lambda: raw(*frozen(network, rung), data, 3),
        "hydratune": lambda: ours(network, data, 3, RUNGS[rung]),
        "inference": lambda: inference(network, data, 3),
    }
    run = makers[who]()
    importlib.import_module("torch.utils.tensorboard")  # a run has it; its modules are no memory of a step
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps(peak - before))


def memory(models: list[str], batch_size: int, repeats: int) -> None:
    table = Table(title=f"peak memory of a step, MB over that before, batch {batch_size}, median of {repeats}")
    for column in ("model", "trains", "raw loop", "hydratune", "inference", "hydratune / raw", "/ inference"):
        table.add_column(column)
    for model in models:
        for rung in RUNGS:
            seen: dict[str, float] = {}
            for who in ("raw loop", "hydratune", "inference"):
                command = [sys.executable, __file__, "--measure", who, model, rung, "--batch", str(batch_size)]
                values = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(repeats)
                ]
                seen[who] = statistics.median(values) / 1e6
            ratios = [seen["hydratune"] / seen[k] for k in ("raw loop", "inference")]
            table.add_row(model, rung, *(f"{v:.1f}" for v in seen.values()), *(f"{r:.2f}" for r in ratios))
    Console(width=120).print(table)


def cache(model: str, repeats: int, epochs: int = 20, count: int = 384, batch_size: int = 128) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    split = MemorySplit(images, torch.arange(count) % 10)
    network, steps = build(model), epochs * (count // batch_size)
    stream = ImageStream(split, SPEC, data_stream.Batches(batch_size, 1), data_stream.Placement(torch.device("cpu")))
    seconds: dict[str, list[float]] = {"raw loop": [], "not cached": [], "memory": [], "disk": []}
    accuracies: dict[str, float] = {}

    def engine(where: str) -> float:
        net = network.fork(0)
        phases = HeadOnly().phases(net.groups, steps)
        with tempfile.TemporaryDirectory() as home, Run(Path(home) / "run") as record:
            plan = TrainingPlan(phases, SGD(0.01, momentum=0.9), Constant(), Settings(clip=1.0), 0, Monitor("accuracy"))
            trial = Trial(net, plan, Classification(), SPEC, Runtime(precision="fp32"), record)
            store = FeatureStore(where, 2**31, Path(home) / "features")
            caches = Caches(frozenset(phases), store, f"{time.time()}", "val") if where != "not cached" else None
            started = time.perf_counter()
            train([trial], Streams(stream, stream, {}), Cadence(10**9, 10**9, 10**9), Silent(), 0, caches)  # type: ignore[arg-type]
            elapsed = time.perf_counter() - started  # with one evaluation and one checkpoint at the end
            accuracies[where] = trial.state.last["accuracy"]
        return elapsed

    def raw_loop() -> float:
        model, still = frozen(network.fork(0), "head")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        model.train()
        for module in still:
            module.eval()
        started = time.perf_counter()
        for batch in stream.batches(0, steps):
            F.cross_entropy(model(batch.inputs), batch.targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        hits = 0
        with torch.no_grad():
            model.eval()
            for batch in stream.eval_batches():
                hits += int((model(batch.inputs).argmax(1) == batch.targets).sum())
        accuracies["raw loop"] = hits / count
        return time.perf_counter() - started

    for _ in range(repeats):
        for name in seconds:
            seconds[name].append(raw_loop() if name == "raw loop" else engine(name))
    table = Table(title=f"{model}, head_only, {epochs} epochs of {count} images, fp32, median of {repeats}")
    for column in ("who", "seconds", "x as fast as raw: median", "min", "max", "final accuracy"):
        table.add_column(column)
    for name, seen in seconds.items():
        ratios = [r / t for t, r in zip(seen, seconds["raw loop"], strict=True)]
        table.add_row(
            name, f"{statistics.median(seen):.2f}", f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}",
            f"{max(ratios):.1f}", f"{accuracies[name]:.6f}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit"])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["ladder", "memory", "cache"])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        measure_memory(*options.measure, options.batch)
        return
    Runtime().start()
    if "ladder" in options.only:
        ladder(options.models, options.rungs, options.batch, options.repeats)
    if "memory" in options.only:
        memory(options.models, options.batch, options.repeats)
    if "cache" in options.only:
        cache(options.models[0], options.repeats)


if __name__ == "__main__":
    main()
