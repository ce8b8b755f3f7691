"""What is reached on real data beside peers, and from published weights beside none: rows of vision.py.

bccd: test mAP50 of our RetinaNet and torchvision's over the same modules, which has its own loss and its own choice of
    boxes, in a plain loop over the same batches with the same optimizer and schedule.
camvid: test mIoU of our U-Net and segmentation_models_pytorch's on the same encoder and tensors, likewise
    (pip install segmentation-models-pytorch).
pretrained: from published weights and from scratch, with 5% and with all of the labels of flowers5, bccd and camvid.

What was measured is kept in --results, a line each, and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hydratune.core.types import Batch
from hydratune.data.images.augment import Augment
from hydratune.data.stream import Batches, Placement
from hydratune.models.vision.efficientnet_lite0 import efficientnet_lite0
from hydratune.optim.schedules import Cosine

CPU = torch.device("cpu")
DATA = Path(os.environ.get("HYDRATUNE_DATA", "data"))
LAST = "engine.eval_every=1000000"  # the network at the end, as the plain loops have it


def measured(options: argparse.Namespace, key: str, measure: Callable[[], float]) -> tuple[float, float]:
    """(figure, seconds), from the file where it is there."""
    known = options.results.read_text().splitlines() if options.results.is_file() else []
    for line in map(json.loads, known):
        if line["key"] == key:
            return line["figure"], line["seconds"]
    began = time.perf_counter()
    figure = measure()
    seconds = time.perf_counter() - began
    with options.results.open("a") as file:
        file.write(json.dumps({"key": key, "figure": figure, "seconds": round(seconds, 1)}) + "\n")
    return figure, seconds


def command(line: list[str], metric: str) -> float:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-m", "hydratune", *line, "test=true", f"hydra.run.dir={home}/run", f"outputs={home}"],
            text=True, capture_output=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return float(json.loads((Path(home) / "run" / "run.json").read_text())["metrics"][metric])


def beside(
    options: argparse.Namespace, console: Console, title: str, ours: Callable[[int], float], peer: str,
    theirs: Callable[[int], float],
) -> None:  # fmt: skip
    """Both, seed by seed in turn."""
    table = Table(title=f"{title}, {options.epochs} epochs")
    for column in ("seed", "hydratune", "s", peer, "s", "difference"):
        table.add_column(column, justify="right")
    found: list[tuple[float, float]] = []
    for seed in options.seeds:
        key = f"{options.row} {options.epochs} {seed}"
        own, seconds = measured(options, f"{key} ours", partial(ours, seed))
        other, more = measured(options, f"{key} theirs", partial(theirs, seed))
        found.append((own, other))
        table.add_row(str(seed), f"{own:.4f}", f"{seconds:.0f}", f"{other:.4f}", f"{more:.0f}", f"{own - other:+.4f}")
    columns = [*zip(*found, strict=True), [a - b for a, b in found]]
    ours_, theirs_, apart = (spread(list(values)) for values in columns)
    table.add_row("mean", ours_, "", theirs_, "", apart)
    console.print(table)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


class Plain:
    """A loop without a framework: AdamW (none of it on norms and biases), warm-up and half a cosine."""

    def __init__(self, model: nn.Module, lr: float, steps: int) -> None:
        every = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.model, self.lr, self.steps = model, lr, steps
        self.optimizer, self.schedule = torch.optim.AdamW(groups, lr=lr), Cosine(0.1)

    def run(self, batches: Iterator[Batch], loss_of: Callable[[Batch], Tensor]) -> None:
        self.model.train()
        for number, batch in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * self.schedule.factor(number, self.steps)
            loss_of(batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.model.eval()


# ---- detection


def bccd(options: argparse.Namespace, console: Console) -> None:
    def ours(seed: int) -> float:
        line = ["experiment=bccd_retinanet", f"epochs={options.epochs}", f"seed={seed}", LAST, "runtime.precision=fp32"]
        return command([*line], "test_map50")

    beside(options, console, "bccd 320 px, batch 8: test mAP50", ours, "torchvision", lambda s: bccd_theirs(s, options))


def bccd_theirs(seed: int, options: argparse.Namespace) -> float:
    """Its RetinaNet's loss and its choice of boxes, measured by the same judge in pixels of the pictures."""
    import vision

    from hydratune.core.objects import owner_of
    from hydratune.data.images.detection import VocDetection
    from hydratune.data.images.frame import Frame
    from hydratune.tasks.average_precision import average_precision
    from hydratune.tasks.retinanet import Retinanet

    task, half = Retinanet(width=vision.WIDTH), [0.5] * 3
    augment = Augment(flip=True, resized_crop=(0.5, 1.0), visible=0.3)
    data = VocDetection(task, augment, str(DATA / "bccd"), size=vision.SIZE, mean=half, std=half, skip_broken=2)
    body, network = vision.network_of(task, data, seed)
    model = vision.Theirs(network)
    stream = data.stream(data.split("train"), body, Batches(8, seed, training=True), Placement(CPU))
    steps = options.epochs * stream.steps_per_epoch
    Plain(model, 2e-3, steps).run(stream.batches(0, steps), lambda b: model.loss(b.inputs, vision.listed(b)))
    images, truth, found = [], [], []
    frame, sizes = Frame.of_spec(data.spec()), (vision.SIZE, vision.SIZE)
    for batch in data.stream(data.split("test"), body, Batches(8, 0), Placement(CPU)).eval_batches():
        with torch.no_grad():
            outputs, anchors = model(batch.inputs), [model.anchors] * len(batch.ids)
            levels = [9 * math.ceil(vision.SIZE / stride) ** 2 for stride in (8, 16, 32, 64, 128)]
            assert sum(levels) == len(model.anchors), (levels, len(model.anchors))
            split = {name: list(values.split(levels, 1)) for name, values in outputs.items()}
            every = model.judge.postprocess_detections(
                split, [list(a.split(levels)) for a in anchors], [sizes] * len(batch.ids)
            )
        owners = owner_of(batch.targets.boxes)
        for i, (number, (width, height)) in enumerate(zip(batch.ids, batch.targets.sizes.tolist(), strict=True)):
            images.append(int(number))
            own = batch.targets.boxes.values[owners == i].double()
            told = every[i]
            parts = ((own[:, :4], own[:, 4], own[:, 5], truth), (told["boxes"], told["labels"], told["scores"], found))
            for corners, labels, last, into in parts:
                back = frame.boxes_back(corners.double(), width, height)
                beside_them = torch.stack([torch.full_like(last, int(number)), labels, last], 1).double()
                into.append(torch.cat([beside_them[:, :1], back, beside_them[:, 1:]], 1))
    return average_precision(torch.cat(truth), torch.cat(found), sorted(images), 3).at_50


# ---- segmentation


def camvid(options: argparse.Namespace, console: Console) -> None:
    def ours(seed: int) -> float:
        line = ["experiment=camvid_unet", f"epochs={options.epochs}", f"seed={seed}", LAST, "runtime.precision=fp32"]
        return command(line, "test_miou")

    beside(
        options, console, "camvid 256x192, batch 8: test mIoU", ours, "segmentation_models_pytorch",
        lambda seed: camvid_theirs(seed, options.epochs),
    )  # fmt: skip


def camvid_theirs(seed: int, epochs: int) -> float:
    """Its U-Net as it comes, with the losses and the measure of ours."""
    import segmentation_models_pytorch as smp

    from hydratune.data.images.masks import ImageMasks
    from hydratune.tasks.segmentation import Segmentation

    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    task, augment = Segmentation(dice=1.0), Augment(flip=True, resized_crop=(0.5, 1.0))
    half = [0.5] * 3
    data = ImageMasks(task, augment, str(DATA / "camvid"), names, 11, size=[192, 256], mean=half, std=half, fit="crop")
    torch.manual_seed(seed)
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=len(names))
    body = efficientnet_lite0(input_shape=(3, 192, 256), dense=True)
    assert body.weights is not None
    known = {f"model.{name}": tensor for name, tensor in body.weights()[1].items()}
    model.encoder.load_state_dict({name: known[name] for name in model.encoder.state_dict()})
    stream = data.stream(data.split("train"), body, Batches(8, seed, training=True), Placement(CPU))
    steps = epochs * stream.steps_per_epoch
    Plain(model, 1e-3, steps).run(stream.batches(0, steps), lambda b: task.loss(model(b.inputs), b).mean())
    metrics = task.metrics(data.spec(), CPU)
    with torch.no_grad():
        for batch in data.stream(data.split("test"), body, Batches(8, 0), Placement(CPU)).eval_batches():
            metrics.update(model(batch.inputs), batch)
    return metrics.compute()["miou"]


# ---- published weights


def few_labels(name: str, home: Path) -> Path:
    """A copy of the data of which train has one sample in twenty, every part in its own folder."""
    if name == "bccd":
        shutil.copytree(DATA / "bccd", home / name)
        listed = home / name / "ImageSets/Main/train.txt"
        listed.write_text("\n".join(listed.read_text().split()[::20]) + "\n")
    else:
        shutil.copytree(DATA / name, home / name)
        for folder in ("train", "trainannot") if name == "camvid" else ():
            for number, path in enumerate(sorted((home / name / folder).iterdir())):
                if number % 20:
                    path.unlink()
        for kind in sorted((home / name).iterdir()) if name == "flowers5" else ():
            for number, path in enumerate(sorted(kind.iterdir())):
                part = ("test", "val")[number % 10] if number % 10 < 2 else "train"
                (home / name / part / kind.name).mkdir(parents=True, exist_ok=True)
                if part != "train" or number // 10 % 20 == 0:
                    path.rename(home / name / part / kind.name / path.name)
                else:
                    path.unlink()
            kind.rmdir()
    return home / name


def pretrained(options: argparse.Namespace, console: Console) -> None:
    """Each run takes at most three minutes on the machine of the figures."""
    table = Table(title=f"test metric, {len(options.seeds)} seeds: mean and standard deviation")
    for column in ("work", "labels", "metric", "steps", "pretrained", "from scratch"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as copies:
        for work in [w for w in works() if not options.works or w.name in options.works]:
            for labels in ("5%", "100%"):
                root = (
                    [f"dataset.root={few_labels(work.data, Path(copies) / work.name.replace(', ', '-'))}"]
                    if labels == "5%"
                    else []
                )
                cells = []
                for what, start in (("pretrained", work.pretrained), ("scratch", work.scratch)):
                    line = [*work.line, *root, start, f"steps={work.steps}", "stage=finetune", "freeze=none", LAST]
                    line += ["schedule=cosine_warmup"]
                    key = f"pretrained {work.name} {labels} {what} {work.steps}"
                    found = [
                        measured(options, f"{key} {s}", partial(seeded, line, s, work.metric)) for s in options.seeds
                    ]
                    values = [figure for figure, _ in found]
                    cells.append(
                        f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if values[1:] else 0:.4f}"
                    )
                table.add_row(work.name, labels, work.metric, str(work.steps), *cells)
            console.print(table)


class Work(NamedTuple):
    name: str
    data: str
    line: list[str]
    metric: str
    steps: int
    pretrained: str
    scratch: str


def works() -> list[Work]:
    half = ["dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.5,0.5,0.5]"]
    flowers = ["dataset=flowers5", "dataset.size=128", "batch_size=32", "optimizer=adamw"]
    lite = ["model=efficientnet_lite0", "init_from=null"]
    squeezenet = ["model=torchvision", "model.name=squeezenet1_1", "optimizer.lr=3e-4"]
    keras = DATA.parent / "weights" / "squeezenet_keras_notop.h5"
    package = ("model.weights=package", "model.weights=null")
    return [
        Work("flowers5", "flowers5", [*flowers, *half, *lite, "optimizer.lr=1e-3"], "test_accuracy", 60, *package),
        Work(
            "flowers5, squeezenet", "flowers5", [*flowers, *squeezenet], "test_accuracy", 60, f"init_from={keras}",
            "init_from=null",
        ),
        Work("camvid", "camvid", ["experiment=camvid_unet", *lite], "test_miou", 60, *package),
        Work("bccd", "bccd", ["experiment=bccd_retinanet", *lite], "test_map50", 120, *package),
    ]  # fmt: skip


def seeded(line: list[str], seed: int, metric: str) -> float:
    return command([*line, f"seed={seed}"], metric)


ROWS = {"bccd": bccd, "camvid": camvid, "pretrained": pretrained}
