"""Time of a training step: hydratune's engine, a hand-written loop, Lightning's Trainer and Hugging Face's.

    python scripts/bench/step.py [--models simple_cnn resnet18] [--batches 16 128] [--repeats 7]

Same model, same weights, same batches in memory, SGD with momentum 0.9, gradient norm clipped at 1, fp32, plain
layout, nothing logged within the timed steps. All four take turns in one process; the table shows the median over
repeats of milliseconds per step, and the median, smallest and largest of the ratio to the raw loop of the same turn.
The raw loop clips with error_if_nonfinite, as the engine checks that nothing is NaN. All run with the allocator
setting that hydratune makes (`runtime.keep_memory`), which is worth up to 20% to each of them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from hydratune.core.task import Monitor
from hydratune.core.types import Batch, FreezeStrategy, ImageSpec
from hydratune.distributed.runtime import Runtime, cpu_name
from hydratune.engine.loop import train
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.freeze.strategies import NoFreeze
from hydratune.models.network import Network, build_network
from hydratune.models.vision.simple_cnn import simple_cnn
from hydratune.models.vision.torchvision_models import torchvision_model
from hydratune.optim.optimizers import SGD
from hydratune.optim.schedules import Constant
from hydratune.record.run import Run
from hydratune.tasks.classification import Classification

SPEC = ImageSpec((3, 32, 32), tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3)


class Batches:
    """The same batches for everyone."""

    unit, units_per_sample = "images", 1.0

    def __init__(self, batch_size: int, count: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.batch_size = batch_size
        self.list = [
            Batch(torch.randn(batch_size, 3, 32, 32, generator=g), torch.randint(0, 10, (batch_size,), generator=g),
                  torch.arange(batch_size))
            for _ in range(min(count, 16))
        ]  # fmt: skip

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return (self.list[step % len(self.list)] for step in range(first, last))

    def eval_batches(self) -> Iterator[Batch]:
        return iter(self.list[:1])

    def rows(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(())

    def eval_rows(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(())


class Silent:
    """A progress line that shows nothing."""

    def show(self, step: int, seen: object) -> None: ...

    milestone = show


def network_of(name: str) -> Network:
    torch.manual_seed(0)
    body = simple_cnn() if name == "simple_cnn" else torchvision_model(name, input_shape=(3, 32, 32))
    features = torch.zeros(2, 3, 32, 32)
    for _, module in body.groups:
        features = module(features)
    return build_network(body, nn.Linear(features.shape[1], 10))


def whole(network: Network) -> nn.Module:
    return nn.Sequential(*[g.module for g in network.groups])


def raw(network: Network, data: Batches, steps: int) -> Callable[[], float]:
    model = whole(network).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run() -> float:
        started = time.perf_counter()
        for batch in data.batches(0, steps):
            loss = F.cross_entropy(model(batch.inputs), batch.targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / steps

    return run


def ours(
    network: Network, data: Batches, steps: int, strategy: FreezeStrategy | None = None, clip: float | None = 1.0,
    recompute: bool = False,
) -> Callable[[], float]:  # fmt: skip
    class NoEvaluation(Trial):
        def log(self, step: int, speed: float, unit: str) -> dict[str, str]:
            nonlocal seconds
            seconds = time.perf_counter() - started  # the loop logs here only at its end: the steps are over
            return {}

    seconds = started = 0.0
    home = tempfile.TemporaryDirectory()
    count = 0

    def run() -> float:
        nonlocal started, count
        count += 1
        phases = (strategy or NoFreeze()).phases(network.groups, steps)
        with Run(Path(home.name) / str(count)) as record:
            settings = Settings(clip=clip, recompute=recompute)
            plan = TrainingPlan(phases, SGD(0.01, momentum=0.9), Constant(), settings, 0, Monitor("accuracy"))
            trial = NoEvaluation(network, plan, Classification(), SPEC, Runtime(precision="fp32"), record)
            line = Silent()
            started = time.perf_counter()
            train([trial], Streams(data, data, {}), Cadence(10**9, 10**9, 10**9), line)  # type: ignore[arg-type]
        return seconds / steps

    return run


def lightning(network: Network, data: Batches, steps: int) -> Callable[[], float]:
    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

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
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def run() -> float:
        module = Module()
        pairs = [(b.inputs, b.targets) for b in data.batches(0, steps)]
        loader = torch.utils.data.DataLoader(pairs, batch_size=None)  # type: ignore[arg-type,var-annotated]
        trainer = L.Trainer(
            max_steps=steps, max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, barebones=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        return (module.ended - module.started) / steps

    return run


def hugging_face(network: Network, data: Batches, steps: int) -> Callable[[], float]:
    import transformers

    transformers.logging.set_verbosity_error()
    home = tempfile.TemporaryDirectory()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = whole(network)

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.model(inputs)
            return {"loss": F.cross_entropy(outputs, labels), "logits": outputs}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader:  # type: ignore[type-arg]
            pairs = [{"inputs": b.inputs, "labels": b.targets} for b in data.batches(0, steps)]
            return torch.utils.data.DataLoader(pairs, batch_size=None)  # type: ignore[arg-type]

        def create_optimizer(self) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
            return self.optimizer

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 0:
                self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            self.ended = time.perf_counter()

    def run() -> float:
        clock = Clock()
        arguments = transformers.TrainingArguments(
            output_dir=home.name, max_steps=steps, max_grad_norm=1.0, report_to=[], save_strategy="no", use_cpu=True,
            logging_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(Model(), arguments, callbacks=[clock], train_dataset=[0]).train()
        return (clock.ended - clock.started) / steps

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["simple_cnn", "resnet18"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 128])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=["lightning", "hugging_face"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Runtime().start()
    table = Table(title=f"ms per step, median of {options.repeats}; {cpu_name()}, torch {torch.__version__}")
    for column in ("model", "batch", "who", "ms", "x raw: median", "min", "max"):
        table.add_column(column, justify="right" if column not in ("model", "who") else "left")
    for model in options.models:
        for batch_size in options.batches:
            steps = {("simple_cnn", 16): 150, ("simple_cnn", 128): 80, ("resnet18", 16): 10, ("resnet18", 128): 3}.get(
                (model, batch_size), 10
            )
            data = Batches(batch_size, steps)
            makers = {"raw loop": raw, "hydratune": ours}
            makers |= {
                n: f for n, f in (("lightning", lightning), ("hugging_face", hugging_face)) if n in options.peers
            }
            network = network_of(model)
            runs = {name: make(copy.deepcopy(network), data, steps) for name, make in makers.items()}
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(options.repeats + 1):
                for name, run in runs.items():
                    seconds = run()
                    if turn:  # the first turn warms up
                        times[name].append(seconds)
            for name, seen in times.items():
                ratios = [t / r for t, r in zip(seen, times["raw loop"], strict=True)]
                table.add_row(
                    model, str(batch_size), name, f"{1000 * statistics.median(seen):.2f}",
                    f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}",
                )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
