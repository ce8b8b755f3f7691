"""Detection: which boxes there are in an image, and of which classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hydratune.core.loss import divisor
from hydratune.core.markdown import markdown_table
from hydratune.core.objects import Objects, clipped, owner_of
from hydratune.core.task import Asked, Task
from hydratune.core.types import Batch, Features, Spec, Summary
from hydratune.data.images.frame import Frame
from hydratune.distributed.runtime import Runtime
from hydratune.record import boxes
from hydratune.tasks.average_precision import SIZES, average_precision, check_installed
from hydratune.tasks.choices import check_choice
from hydratune.tasks.pyramid import FIRST_STRIDE

MONITORS = ("map", "map50", "map75")
SHOWN = 4  # of the best images, and of the worst
LOOKED_AT = 500  # images of which these are chosen
SURE = 0.3  # score of what is drawn
LEVELS = 5  # of a pyramid on a usual body


class Located(NamedTuple):
    """What a detector says of each of its A places."""

    scores: Tensor  # [B, A, K] probability of each class
    boxes: Tensor  # [B, A, 4] left, top, right, bottom in pixels of what the network sees


class Detection(Task):
    """What every detector shares: levels in, COCO's average precision out. A subclass has the head, its loss, and what
    its outputs stand for.
    """

    kind = "boxes"
    monitors = MONITORS
    dense = True

    def __init__(self, monitor: str, width: int, least: float, overlap: float, most: int) -> None:
        """monitor: map, map50 or map75, the metric of validation that selects. width: channels of the pyramid.

        least: the score from which a box is one; overlap: from which two of a class are the same; most: boxes of an
        image.
        """
        check_installed()
        check_choice("monitor", monitor, MONITORS)
        if width < 1 or most < 1:
            raise ValueError(f"dataset.task.{'width' if width < 1 else 'most'}={min(width, most)}: at least 1")
        for key, share in (("least", least), ("overlap", overlap)):
            if not 0 <= share < 1:
                raise ValueError(f"dataset.task.{key}={share}: from 0 to below 1")
        self.monitor, self.width = monitor, width
        self.least, self.overlap, self.most = least, overlap, most
        self.levels = LEVELS  # that the head built last has

    def first_level(self, strides: Sequence[int]) -> int:
        """The pyramid begins at an eighth of the image's resolution, or with the coarsest level."""
        return next((i for i, stride in enumerate(strides) if stride >= FIRST_STRIDE), len(strides) - 1)

    def located(self, outputs: Any) -> Located:
        """What the head's outputs stand for."""
        raise NotImplementedError

    def fits(self, spec: Any) -> tuple[str, list[str]]:
        """(markdown, warnings): how what is looked for fits train's boxes."""
        return "", []

    def metrics(self, spec: Spec, device: torch.device) -> DetectionMetrics:
        return DetectionMetrics(spec, self)

    def found(self, outputs: Any, sizes: Tensor, spec: Any) -> list[Tensor]:
        """Of each image [M, 6]: corners in its own pixels, class, score; sizes: [B, 2] of the pictures."""
        frame = Frame.of_spec(spec)
        result = []
        every = detections(self.located(outputs), (frame.height, frame.width), self.least, self.overlap, self.most)
        for own, (width, height) in zip(every, sizes.tolist(), strict=True):
            back = frame.boxes_back(own[:, :4].double(), width, height)
            result.append(torch.cat([back, own[:, 4:].double()], 1).cpu())
        return result

    def exported(self, outputs: Any) -> dict[str, Tensor]:
        """Of each place the probability of each class [A, K], and a box [A, 4]: left, top, right, bottom in pixels of
        what the network sees. Which of them are one thing (non-maximum suppression) is left to the program.
        """
        return self.located(outputs)._asdict()

    def predict(self, forward: Callable[[Features], Any], views: Sequence[Batch], asked: Asked) -> list[dict[str, Any]]:
        """How many boxes there are of what, and each with its corner, sides (pixels of the picture) and score."""
        (batch,) = views
        names, rows = asked.spec.class_names, []
        for own in self.found(forward(batch.inputs), batch.targets.sizes.cpu(), asked.spec):
            listed = [
                {"class": names[int(k)], "score": round(p, 6), "bbox": [round(v, 2) for v in (x, y, r - x, b - y)]}
                for x, y, r, b, k, p in own.tolist()
            ]
            rows.append({"boxes": listed, "count": len(listed)})
        return rows


def detections(
    located: Located, size: tuple[int, int], least: float, overlap: float, most: int, candidates: int = 5000
) -> list[Tensor]:
    """Of each image [M, 6]: left, top, right, bottom, number of the class, score; the surest first.

    size: (H, W) that boxes are clipped to. least: score from which a box is one; overlap: from which two boxes of a
    class are the same; most: boxes of an image.
    """
    from torchvision.ops import batched_nms

    result = []
    for every, corners in zip(*located, strict=True):
        scores = every.flatten()
        above = (scores > least).nonzero().flatten()
        picked = above[scores[above].topk(min(candidates, len(above))).indices]
        boxes = clipped(corners[picked // every.shape[1]], size[1], size[0])
        classes, own = picked % every.shape[1], scores[picked]
        kept = batched_nms(boxes, own, classes, overlap)[:most]
        result.append(torch.cat([boxes[kept], classes[kept].unsqueeze(1), own[kept].unsqueeze(1)], 1))
    return result


class DetectionMetrics:
    """What was found and what there is, in pixels of the pictures; on the CPU, as it is measured there."""

    def __init__(self, spec: Any, task: Detection) -> None:
        self.spec, self.task = spec, task
        self._frame = Frame.of_spec(spec)
        # images and their sizes; truth; what was found; sum, count and weight of the loss's terms
        self._rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def update(self, outputs: Any, batch: Batch) -> None:
        targets: Objects = batch.targets
        ids, sizes = batch.ids.cpu().double(), targets.sizes.cpu()
        terms = self.task.loss(outputs, batch).terms.values()
        losses = torch.tensor([[float(t.sum.detach()), float(t.count), t.weight] for t in terms], dtype=torch.float64)
        found = self.task.found(outputs, sizes, self.spec)
        numbers = ids.repeat_interleave(torch.tensor([len(f) for f in found]))
        owners = owner_of(targets.boxes).cpu()
        values = targets.boxes.values.cpu().double()
        back = [
            self._frame.boxes_back(values[owners == i, :4], *size) for i, size in enumerate(sizes.tolist())
        ]  # as many as there are images, each with its own
        truth = torch.cat([ids[owners].unsqueeze(1), torch.cat(back), values[:, 4:]], 1)
        images = torch.cat([ids.unsqueeze(1), sizes.double()], 1)
        numbered = torch.arange(len(losses), dtype=torch.float64).unsqueeze(1)
        found_rows = torch.cat([numbers.unsqueeze(1), torch.cat(found)], 1)
        self._rows.append((images, truth, found_rows, torch.cat([numbered, losses], 1)))

    def over_ranks(self, runtime: Runtime) -> None:
        device = runtime.torch_device
        own = [torch.cat(parts).to(device) for parts in zip(*self._rows, strict=True)]
        images, truth, found, losses = (runtime.joined(rows).cpu() for rows in own)
        self._rows = [(images, truth, found, losses)]

    def compute(self) -> dict[str, float]:
        """Raises ValueError where there is nothing to be found in any image: then there is nothing to measure."""
        images, truth, found, losses = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        self._images = images[images[:, 0].argsort()]
        self._truth, self._found = (rows[rows[:, 0].argsort(stable=True)] for rows in (truth, found))
        if not bool((self._truth[:, 6] == 0).any()):
            raise ValueError(
                "dataset: the images that are evaluated have no boxes, so that no precision can be measured"
            )
        numbers = self._images[:, 0].int().tolist()
        self._precision = average_precision(self._truth, self._found, numbers, self.spec.num_classes)
        own = self._precision
        loss = sum(_mean(losses[losses[:, 0] == term]) for term in losses[:, 0].unique())
        return {"loss": loss, "map": own.mean, "map50": own.at_50, "map75": own.at_75}

    def warnings(self) -> list[str]:
        said = []
        if not len(self._found):
            said.append(
                f"no box of val has a score above {self.task.least:g}: more steps or another rate may learn more"
            )
        return [*said, *self.task.fits(self.spec)[1]]

    def show(self, stream: Any) -> Mapping[str, Summary]:
        names, own = self.spec.class_names, self._precision
        counts = [int(((self._truth[:, 5] == k) & (self._truth[:, 6] == 0)).sum()) for k in range(len(names))]
        rows = [
            (name, _share(mean), _share(half), f"{count:,}")
            for name, (mean, half), count in zip(names, own.by_class, counts, strict=True)
        ]
        sizes = [(name, _share(value)) for name, value in zip(SIZES, own.by_size, strict=True)]
        shown: dict[str, Summary] = {
            "per_class": markdown_table(("class", "AP", "AP50", "boxes"), rows),
            "per_size": markdown_table(("boxes", "AP"), sizes),
        }
        if told := self.task.fits(self.spec)[0]:
            shown["anchors"] = told
        ranked = self._ranked()
        for tag, chosen in (("best", ranked[::-1][:SHOWN]), ("worst", ranked[:SHOWN])):
            shown[f"boxes_{tag}"] = self._drawn(stream, chosen)
        return shown

    def _ranked(self) -> list[tuple[float, int]]:
        """(F1 of what is surely found, row of the image), the worst first."""
        from torchvision.ops import box_iou

        scored = []
        for row, image in enumerate(self._images[:LOOKED_AT, 0]):
            truth, found = self._of(self._truth, image), self._of(self._found, image)
            truth, found = truth[truth[:, 6] == 0], found[found[:, 6] >= SURE]
            right = 0
            if len(truth) and len(found):
                same = truth[:, 5].unsqueeze(1) == found[:, 5]
                overlap = box_iou(truth[:, 1:5], found[:, 1:5]) * same
                right = int(min((overlap.amax(1) >= 0.5).sum(), (overlap.amax(0) >= 0.5).sum()))
            total = len(truth) + len(found)
            scored.append((2 * right / total if total else 1.0, row))
        return sorted(scored)

    @staticmethod
    def _of(rows: Tensor, image: Tensor) -> Tensor:
        return rows[rows[:, 0] == image]

    def _drawn(self, stream: Any, chosen: Sequence[tuple[float, int]]) -> Tensor:
        images = self._images[[row for _, row in chosen]]
        found: list[boxes.Boxes] = []
        truth: list[boxes.Boxes] = []
        for number, width, height in images.tolist():
            image = torch.tensor(number)
            for rows, into, least in ((self._found, found, SURE), (self._truth, truth, -1.0)):
                own = self._of(rows, image)
                own = own[own[:, 6] >= least]
                corners = self._frame.boxes(own[:, 1:5], int(width), int(height))
                into.append((corners, own[:, 5].long(), own[:, 6]))
        captions = [f"F1 {f1:.2f} at a score of {SURE:g}; white: what there is" for f1, _ in chosen]
        seen = stream.visible(images[:, 0].long())
        return boxes.drawn(seen, found, self.spec.class_names, truth, captions)


def _mean(rows: Tensor) -> float:
    """Of one term's rows (number, sum, count, weight)."""
    return float(rows[0, 3] * rows[:, 1].sum() / divisor(rows[:, 2].sum()))


def _share(value: float) -> str:
    return "none there" if value != value else f"{value:.4f}"
