"""Detection, segmentation and pretrained trunks beside their peers, row by row.

    python scripts/bench/vision.py step|frozen|letterbox|bccd|camvid|pretrained [--repeats 5] [--seeds 1 2 3]

step: RetinaNet on EfficientNet-Lite0, bccd at 320 px, 50 steps of SGD: the engine against torchvision's RetinaNet over
    copies of the same modules in a plain loop, same batches, same start. Losses of every step are compared.
frozen: the trunk frozen, 20 epochs: the engine with a cached pyramid (the pass that fills it included) against the same
    plain loop with requires_grad=False and the trunk in eval. B: operations of the body, H: of the head, forward.
letterbox: JPEG of 640x480 to 320x320 with boxes, a second: FileSplit against torchvision's v2 transforms in a
    DataLoader, with the number of workers that is best for it.
bccd, camvid, pretrained: see accuracy.py beside this file; they go on where they were stopped.

Needs the data under $HYDRATUNE_DATA and `pip install 'hydratune[pretrained,detection]'`; nothing may run beside it.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step import Silent
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hydratune.core.batching import rows
from hydratune.core.loss import Loss
from hydratune.core.task import Monitor
from hydratune.core.types import Backbone, Batch, ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.detection import VocDetection
from hydratune.data.stream import Batches, Placement, Rows
from hydratune.distributed.runtime import Runtime, cpu_name
from hydratune.engine.loop import train
from hydratune.engine.plan import TrainingPlan
from hydratune.engine.settings import Cadence, Settings
from hydratune.engine.stretch import Streams
from hydratune.engine.trial import Trial
from hydratune.engine.trunk import Caches
from hydratune.freeze.strategies import HeadOnly, NoFreeze
from hydratune.models.network import Network, build_network
from hydratune.models.vision.efficientnet_lite0 import efficientnet_lite0
from hydratune.models.vision.levels import wanted_levels
from hydratune.optim.optimizers import SGD
from hydratune.optim.schedules import Constant
from hydratune.record.feature_store import FeatureStore
from hydratune.record.run import Run
from hydratune.tasks.retinanet import Predicted, Retinanet

CPU = torch.device("cpu")
SIZE, WIDTH = 320, 64
DATA = Path(os.environ.get("HYDRATUNE_DATA", "data"))


class Recording(Retinanet):
    """Keeps what every step lost."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[Tensor] = []

    def loss(self, outputs: Predicted, batch: Batch) -> Loss:
        result = super().loss(outputs, batch)
        self.seen.append(result.mean().detach())
        return result


def bccd(task: Retinanet) -> VocDetection:
    half = [0.5] * 3
    return VocDetection(task, Augment(), str(DATA / "bccd"), size=SIZE, mean=half, std=half, skip_broken=2)


def network_of(task: Retinanet, data: VocDetection, seed: int = 0) -> tuple[Backbone, Network]:
    torch.manual_seed(seed)
    spec = data.spec()
    body = efficientnet_lite0(input_shape=spec.input_shape, dense=True)
    assert body.weights is not None
    own = body.source.state_dict()
    for name, tensor in body.weights()[1].items():
        if name in own and own[name].shape == tensor.shape:
            own[name].copy_(tensor)
    body = wanted_levels(body, data.example(body), task.first_level)
    features = data.example(body)
    with torch.no_grad():
        for _, module in body.groups:
            features = module.eval()(features)
    return body, build_network(body, task.build_head(features, spec))


class Theirs(nn.Module):
    """torchvision's RetinaNet over copies of the same modules; its resizing, which nothing needs here, is left out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        self.trunk = nn.ModuleList(group.module for group in network.groups[:-1])
        head: Any = network.head.module
        self.pyramid, self.predict, self.anchors = head.pyramid, head.predict, head.anchors
        backbone = nn.Identity()
        backbone.out_channels = WIDTH  # type: ignore[assignment]
        generator = AnchorGenerator(((32,),) * 5, ((1.0,),) * 5)
        self.judge = RetinaNet(backbone, 3, anchor_generator=generator, head=self.predict)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features: Any = images
        for module in self.trunk:
            features = module(features)
        return self.predict(self.pyramid(features))  # type: ignore[no-any-return]

    def loss(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        losses = self.judge.compute_loss(targets, self(images), [self.anchors] * len(images))
        return sum(losses.values())  # type: ignore[return-value]


def listed(batch: Batch) -> list[dict[str, Tensor]]:
    boxes = [batch.targets.boxes.of(i) for i in range(len(batch.ids))]
    return [{"boxes": own[:, :4], "labels": own[:, 4].long()} for own in boxes]


class Given:
    """The same batches for both."""

    unit, units_per_sample = "images", 1.0

    def __init__(self, made: list[Batch]) -> None:
        self.list, self.batch_size = made, len(made[0].ids)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return (self.list[step % len(self.list)] for step in range(first, last))

    def eval_batches(self) -> Iterator[Batch]:
        return iter(self.list[:1])

    def rows(self, first: int, last: int) -> Iterator[Rows]:
        return iter(())

    def eval_rows(self) -> Iterator[Rows]:
        return iter(())


class Unevaluated(Trial):
    """Its clock stops when the steps are over."""

    ended = 0.0

    def log(self, step: int, speed: float, unit: str) -> dict[str, str]:
        self.ended = time.perf_counter()
        return {}


def engine(
    network: Network, task: Retinanet, spec: ImageSpec, streams: Streams, steps: int, caches: Caches | None = None
) -> float:
    """Seconds a step."""
    strategy = NoFreeze() if caches is None else HeadOnly()
    with tempfile.TemporaryDirectory() as home, Run(Path(home) / "run") as record:
        plan = TrainingPlan(
            strategy.phases(network.groups, steps), SGD(0.001, momentum=0.9), Constant(), Settings(clip=None), 0,
            Monitor("map"),
        )  # fmt: skip
        trial = Unevaluated(network, plan, task, spec, Runtime(precision="fp32"), record)
        began = time.perf_counter()
        train([trial], streams, Cadence(10**9, 10**9, 10**9), Silent(), caches=caches)  # type: ignore[arg-type]
        return (trial.ended - began) / steps


def plain(model: Theirs, data: Given, steps: int, frozen: bool) -> tuple[float, list[Tensor]]:
    model.train()
    for module in model.trunk if frozen else ():
        module.eval().requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    seen = []
    began = time.perf_counter()
    for batch in data.batches(0, steps):
        loss = model.loss(batch.inputs, listed(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.detach())
    return (time.perf_counter() - began) / steps, seen


def step(options: argparse.Namespace, console: Console) -> None:
    task = Recording(width=WIDTH)
    data = bccd(task)
    body, network = network_of(task, data)
    stream = data.stream(data.split("train"), body, Batches(8, 0), Placement(CPU))
    given = Given(list(stream.batches(0, 25)))
    ratios, ours, theirs, apart = [], [], [], 0.0
    for turn in range(options.repeats + 1):
        task.seen.clear()
        own = engine(copy.deepcopy(network), task, data.spec(), Streams(given, given, {}), 50)  # type: ignore[arg-type]
        other, losses = plain(Theirs(copy.deepcopy(network)), given, 50, False)
        mine = torch.stack(task.seen[:50])
        apart = max(apart, float(((mine - torch.stack(losses)).abs() / torch.stack(losses)).max()))
        if turn:  # the first turn warms up
            ratios.append(own / other)
            ours.append(own)
            theirs.append(other)
    table = Table(title=f"RetinaNet, bccd {SIZE} px, batch 8, 50 steps, {options.repeats} repeats; {machine()}")
    for column in ("hydratune, ms a step", "torchvision", "ratio: median", "min", "max", "losses differ at most by"):
        table.add_column(column, justify="right")
    table.add_row(ms(ours), ms(theirs), *spread(ratios), f"{apart:.1e}")
    console.print(table)


def frozen(options: argparse.Namespace, console: Console) -> None:
    task = Retinanet(width=WIDTH)
    data = bccd(task)
    body, network = network_of(task, data)
    train_stream = data.stream(data.split("train"), body, Batches(8, 0, training=True), Placement(CPU))
    val = data.stream(data.split("val"), body, Batches(8, 0), Placement(CPU))
    epochs = 20
    steps = epochs * train_stream.steps_per_epoch
    operations = [counted(network, data, first, last) for first, last in ((0, -1), (-1, None))]
    ratios, ours, theirs = [], [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as home:
            phase = HeadOnly().phases(network.groups, steps)
            store = FeatureStore("memory", 2**33, Path(home))
            caches = Caches(frozenset(phase), store, "train", "val")
            own = engine(copy.deepcopy(network), task, data.spec(), Streams(train_stream, val, {}), steps, caches)
        every = Given(list(train_stream.batches(0, train_stream.steps_per_epoch)))
        other, _ = plain(Theirs(copy.deepcopy(network)), every, steps, True)
        ratios.append(other / own)
        ours.append(own)
        theirs.append(other)
    body_share, head_share = operations
    possible = (body_share + 3 * head_share) / (3 * head_share)
    table = Table(title=f"frozen trunk, bccd {SIZE} px, {epochs} epochs, {options.repeats} repeats; {machine()}")
    for column in (
        "cached, ms a step",
        "plain loop",
        "times: median",
        "min",
        "max",
        "B / H",
        "possible",
        "share of it",
    ):
        table.add_column(column, justify="right")
    share = statistics.median(ratios) / possible
    table.add_row(
        ms(ours), ms(theirs), *spread(ratios), f"{body_share / head_share:.2f}", f"{possible:.2f}", f"{share:.2f}"
    )
    console.print(table)


def counted(network: Network, data: VocDetection, first: int, last: int | None) -> float:
    """Operations of the groups [first, last), forward, of one image."""
    features: Any = torch.zeros(1, *data.spec().input_shape)
    groups = [group.module.eval() for group in network.groups]
    with torch.no_grad():
        for module in groups[: len(groups) + first if first < 0 else first]:
            features = module(features)
        with FlopCounterMode(display=False) as counter:
            for module in groups[first:last]:
                features = module(features)
    return float(counter.get_total_flops())


def letterbox(options: argparse.Namespace, console: Console) -> None:
    from torch.utils.data import DataLoader, Dataset
    from torchvision import tv_tensors
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    data = bccd(Retinanet())
    files = data.split("train").files
    objects = data.split("train").objects
    paths = list(files.paths) * 4
    from hydratune.data.images.file_split import FileSplit

    class Their(Dataset[Any]):
        resize = v2.Compose([v2.Resize(None, max_size=SIZE, antialias=True), v2.Pad([0, 40, 0, 40], fill=114)])

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> Any:
            image = tv_tensors.Image(decode_image(str(paths[i])))
            own = rows(objects, i % len(files.paths), i % len(files.paths) + 1).boxes.values[:, :4]
            boxes = tv_tensors.BoundingBoxes(own, format="XYXY", canvas_size=tuple(image.shape[1:]))  # type: ignore[call-overload]
            return self.resize(image, boxes)

    def ours(workers: int) -> float:
        split = FileSplit(paths, torch.zeros(len(paths)), data.frame, workers)
        began = time.perf_counter()
        for batch in split.read_ahead(list(torch.arange(len(paths)).split(8))):
            assert batch.shape[1:] == (3, SIZE, SIZE)
        return len(paths) / (time.perf_counter() - began)

    def theirs(workers: int) -> float:
        loader = DataLoader(Their(), batch_size=8, num_workers=workers, collate_fn=list)
        began = time.perf_counter()
        for batch in loader:
            assert batch[0][0].shape == (3, SIZE, SIZE)
        return len(paths) / (time.perf_counter() - began)

    tried = {workers: theirs(workers) for workers in (0, 1, 2, 4)}
    best = max(tried, key=lambda w: tried[w])
    pairs = [(ours(4), theirs(best)) for _ in range(options.repeats)]
    ratios = [a / b for a, b in pairs]
    table = Table(title=f"JPEG 640x480 to {SIZE} px with boxes, images a second; {machine()}")
    for column in ("hydratune", f"torchvision, {best} workers", "times: median", "min", "max"):
        table.add_column(column, justify="right")
    own, other = (f"{statistics.median(values):.0f}" for values in zip(*pairs, strict=True))
    table.add_row(own, other, *spread(ratios))
    console.print(table)


def machine() -> str:
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f}"


def spread(ratios: list[float]) -> tuple[str, str, str]:
    return f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"


def main() -> None:
    import accuracy

    rows = {"step": step, "frozen": frozen, "letterbox": letterbox, **accuracy.ROWS}
    parser = argparse.ArgumentParser()
    parser.add_argument("row", choices=list(rows))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--works", nargs="+", default=[], help="of pretrained: only these, such as camvid")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--results", type=Path, default=Path("vision.jsonl"), help="what was measured, kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    Runtime().start()
    rows[options.row](options, Console(width=150))


if __name__ == "__main__":
    main()
