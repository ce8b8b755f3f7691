"""Images with boxes: COCO's and Pascal VOC's layouts. Letterboxed, so that all images have one size."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.markdown import as_shown
from hydratune.core.objects import COLUMNS, Objects, clipped
from hydratune.core.paths import expanded
from hydratune.core.ragged import Ragged
from hydratune.core.task import Task
from hydratune.core.types import Batch, ImageSpec, Summary
from hydratune.data.images.annotations import Annotated, Annotations, coco, voc
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_images import Found, OwnFiles
from hydratune.data.images.file_split import FileSplit, threads
from hydratune.data.images.frame import Frame
from hydratune.data.images.image_stream import Split

SAMPLED = 64  # boxes of train whose sizes a head may choose its anchors by


class BoxFiles:
    """Images with their boxes; kept in memory where `images` are given."""

    labels = None

    def __init__(self, files: FileSplit, objects: Objects, images: Tensor | None = None, summary: str = "") -> None:
        self.files, self.objects, self.images, self.summary = files, objects, images, summary

    def __len__(self) -> int:
        return len(self.objects.sizes)

    def read(self, ids: Tensor) -> Tensor:
        return self.files.read(ids) if self.images is None else self.images[ids]

    @property
    def read_ahead(self) -> Any:
        return self.files.read_ahead if self.images is None else None

    def read_objects(self, ids: Tensor) -> Objects:
        return Objects(self.objects.boxes.selected(ids), self.objects.sizes[ids])


class DetectionImages(OwnFiles):
    """Base of the sets of images with boxes; a subclass says where these are written down."""

    def __init__(
        self, task: Task, augment: Augment, root: str, classes: Sequence[str | int] | None = None,
        fit: str = "letterbox", **options: Any,
    ) -> None:  # fmt: skip
        """classes: the names that are wanted, in their order; null: all that there are. skip_broken: how many files
        that are no images, and boxes that have no area, may be left out, each named.
        """
        super().__init__(task, augment, fit=fit, **options)
        if task.kind != "boxes":
            raise ValueError("dataset.task: boxes answer a task of detection; dataset/task=retinanet is one")
        self.root = expanded(root)
        self.classes = None if classes is None else [str(name) for name in classes]

    @abstractmethod
    def annotations(self) -> Annotations:
        """As they lie there."""

    @cached_property
    def _annotations(self) -> Annotations:
        """Of the wanted classes, with the size of each picture."""
        found = self.annotations()
        self._refuse_faults(found.faults)
        if self.classes is not None and (unknown := [c for c in self.classes if c not in found.classes]):
            raise ValueError(f"dataset.classes: there is no {unknown[0]}, but {', '.join(found.classes)}")
        classes = self.classes or list(found.classes)
        with threads(self.workers) as pool:
            parts = {part: list(pool.map(_measured, several)) for part, several in found.parts.items()}
        return Annotations({p: [_only(own, classes) for own in several] for p, several in parts.items()}, classes)

    def _refuse_faults(self, faults: Sequence[str]) -> None:
        for fault in faults:
            print(as_shown(f"warning: left out: {fault}"))
        if len(faults) > self.skip_broken:
            raise ValueError(
                f"dataset.skip_broken={self.skip_broken}: {len(faults)} boxes are none. {faults[0]}; "
                f"dataset.skip_broken={len(faults)} leaves them out"
            )

    @cached_property
    def _by_path(self) -> dict[Path, Annotated]:
        return {own.path: own for several in self._annotations.parts.values() for own in several}

    def index(self) -> Found:
        parts = {
            part: ([own.path for own in several], torch.zeros(len(several), dtype=torch.int64))
            for part, several in self._annotations.parts.items()
        }
        return Found(parts, self._annotations.classes)

    def files(self) -> str:
        """The boxes as well."""
        own = [(p.name, a.boxes, a.names, a.crowds) for p, a in self._by_path.items()]
        return hashlib.sha256(json.dumps([super().files(), own]).encode()).hexdigest()

    def check(self, test: bool) -> Sequence[str]:
        """Raises ValueError also for a split without boxes, on which nothing could be measured."""
        said = super().check(test)
        for name in ("val", "test") if test else ("val",):
            self.check_evaluated(self.split(name), f"dataset: the {name} split")
        return said

    def check_evaluated(self, split: Any, named: str) -> None:
        if not len(_scored(split.objects)):
            raise ValueError(f"{named} has no boxes that are scored, so that no precision can be measured")

    def split(self, name: str) -> Split:
        paths, _ = self._part(name)
        images = self.read(name)[0] if self._fits(name) else None
        return BoxFiles(self._streamed(name), self._objects(paths), images, self.whence(name))

    def of_files(self, paths: Sequence[Path], labels: Tensor) -> Split:
        files = self.decoded_when_read(paths, labels)
        every = files.read(torch.arange(len(files))) if self._room_for(len(paths)) else None
        return BoxFiles(files, self._objects(paths), every)

    def _objects(self, paths: Sequence[Path]) -> Objects:
        return objects_of([self._by_path[path] for path in paths], self._annotations.classes, self.frame)

    def split_summary(self, split: Any) -> str:
        values = split.objects.boxes.values
        counts = values[:, 4].long().bincount(minlength=len(self._annotations.classes)).tolist()
        named = [f"{name} {count:,}" for name, count in zip(self._annotations.classes[:12], counts, strict=False)]
        empty, crowds = int((split.objects.boxes.lengths == 0).sum()), int(values[:, 5].sum())
        notes = [f"{empty:,} images have none"] * bool(empty) + [f"{crowds:,} are not scored"] * bool(crowds)
        whence = f"{split.summary}: " if split.summary else ""
        return f"{whence}{len(split):,} images, {len(values):,} boxes; " + ", ".join(named + notes)

    def spec(self) -> ImageSpec:
        return self._spec_with_boxes

    @cached_property
    def _spec_with_boxes(self) -> ImageSpec:
        values = _scored(self._objects(self._part("train")[0]))
        if not len(values):
            raise ValueError("dataset: the images of train have no boxes at all")
        sides = values[:, 2:4] - values[:, :2]
        order = sides.prod(1).argsort(stable=True)
        picked = sides[order[torch.linspace(0, len(order) - 1, min(SAMPLED, len(order))).long()]]
        boxes = tuple((round(w, 2), round(h, 2)) for w, h in picked.tolist())
        return replace(super().spec(), boxes=boxes)

    def show_batch(self, batch: Batch) -> Mapping[str, Summary]:
        from hydratune.record import boxes, pictures

        spec = self.spec()
        images = pictures.visible(batch.inputs[:8], spec.mean, spec.std)
        truth = [batch.targets.boxes.of(i) for i in range(len(images))]
        return {"batch": boxes.drawn(images, [(t[:, :4], t[:, 4].long(), None) for t in truth], spec.class_names)}


class CocoDetection(DetectionImages):
    """JSON files of COCO's kind, and the images that they list."""

    def annotations(self) -> Annotations:
        return coco(self.root)


class VocDetection(DetectionImages):
    """JPEGImages, Annotations and ImageSets, as Pascal VOC has them."""

    def annotations(self) -> Annotations:
        return voc(self.root)


def objects_of(annotated: Sequence[Annotated], classes: Sequence[str], frame: Frame) -> Objects:
    """Where their boxes lie in the frame; of those that a crop cuts, what is left."""
    numbers = {name: i for i, name in enumerate(classes)}
    rows, lengths, sizes = [], [], []
    for own in annotated:
        assert own.size is not None
        boxes = frame.boxes(torch.tensor(own.boxes, dtype=torch.float64).view(-1, 4), *own.size)
        rest = torch.tensor(
            [[numbers[n], float(c)] for n, c in zip(own.names, own.crowds, strict=True)], dtype=torch.float64
        )
        inside = clipped(boxes, frame.width, frame.height)
        values = torch.cat([inside, rest.view(-1, 2)], 1)
        values = values[(inside[:, 2:] > inside[:, :2]).all(1)]
        rows.append(values.float())
        lengths.append(len(values))
        sizes.append(own.size)
    every = torch.cat(rows) if rows else torch.zeros(0, COLUMNS)
    return Objects(Ragged(every, torch.tensor(lengths)), torch.tensor(sizes, dtype=torch.float32).view(-1, 2))


def _scored(objects: Objects) -> Tensor:
    """[S, 6] the boxes that are trained on and scored: all but crowds."""
    values = objects.boxes.values
    return values[values[:, 5] == 0]


def _only(own: Annotated, classes: Sequence[str]) -> Annotated:
    """With the boxes of these classes alone."""
    kept = [i for i, name in enumerate(own.names) if name in classes]
    boxes, names = [own.boxes[i] for i in kept], [own.names[i] for i in kept]
    return Annotated(own.path, own.size, boxes, names, [own.crowds[i] for i in kept])


def _measured(own: Annotated) -> Annotated:
    """With the size of its picture the right way up, and boxes that were drawn on a picture lying on its side turned
    with it. Raises ValueError where they were drawn on one of another size.
    """
    from hydratune.data.images.decode import sizes_of, turned_box

    stored, upright, turn = sizes_of(own.path)
    if own.size in (None, upright):
        return replace(own, size=upright)
    if own.size == stored:
        return replace(own, size=upright, boxes=[turned_box(stored, turn, box) for box in own.boxes])
    raise ValueError(f"dataset: {own.path} is of {upright} pixels, and its boxes were drawn on one of {own.size}")
