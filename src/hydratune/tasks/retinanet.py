"""RetinaNet (arXiv 1708.02002) as a head on a body's levels: a pyramid, anchors, scores and boxes of each, its loss.

The modules are torchvision's; matching and loss are done for a whole batch at once, with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hydratune.core.loss import Loss, Term
from hydratune.core.markdown import markdown_table
from hydratune.core.objects import Objects
from hydratune.core.ragged import inside
from hydratune.core.types import Batch, Features, Levels
from hydratune.tasks.choices import check_choice
from hydratune.tasks.detection import Detection, Located
from hydratune.tasks.pyramid import ADDED, FIRST_STRIDE, Pyramid, anchor_boxes, in_parts, padded

ANCHORS = ("data", "coco")
MATCHED, UNMATCHED = 0.5, 0.4  # overlap from which an anchor is a box's, and below which it is background
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
NONE, BETWEEN = -1, -2  # instead of the number of a box


class Predicted(NamedTuple):
    """For A anchors, all levels' one after the other."""

    scores: Tensor  # [B, A, K] logits
    boxes: Tensor  # [B, A, 4] shifts and scales of the anchors
    anchors: Tensor  # [B, A, 4] left, top, right, bottom; the same for every image


class Anchors(NamedTuple):
    """What boxes are looked for at every place of a pyramid's levels."""

    sizes: tuple[tuple[float, ...], ...]  # of each level, in pixels: the root of their area
    ratios: tuple[float, ...]  # height over width

    @staticmethod
    def usual(levels: int) -> Anchors:
        """Those of the paper: 32 pixels on the finest level, twice as many on each next one."""
        bases = [32 * 2**i for i in range(levels)]
        return Anchors(tuple(tuple(float(int(b * s)) for s in SCALES) for b in bases), (0.5, 1.0, 2.0))

    @staticmethod
    def of(boxes: Sequence[tuple[float, float]], levels: int) -> Anchors:
        """Such that the smallest are as small as the smallest boxes (width, height) that are not exceptions, and the
        ratios those of most boxes.
        """
        sides = torch.tensor(boxes, dtype=torch.float64)
        small = float(sides.prod(1).sqrt().quantile(0.05))
        base = min(max(small / FIRST_STRIDE, 1.5), 8.0) * FIRST_STRIDE
        ratios = (sides[:, 1] / sides[:, 0]).log().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).exp()
        low, middle, high = (round(r, 2) for r in ratios.tolist())
        spread = (
            (low, middle, high) if low < middle / 1.2 and high > middle * 1.2 else (middle / 1.5, middle, middle * 1.5)
        )
        found = tuple(round(r, 2) for r in spread)
        return Anchors(tuple(tuple(round(base * 2**i * s, 1) for s in SCALES) for i in range(levels)), found)

    def placed(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """[A, 4] at every place of levels [B, C, h, w] of images of that size (H, W): row by row, at each place all
        sizes of the first ratio before those of the next.
        """
        return anchor_boxes(self.sizes, self.ratios, maps, size)

    def share_matched(self, boxes: Sequence[tuple[float, float]]) -> float:
        """Of the boxes (width, height) those that one of them fits, were it in the right place."""
        sides = torch.tensor(boxes, dtype=torch.float64)
        sizes, ratios = torch.tensor(sum(self.sizes, ())), torch.tensor(self.ratios)
        height, width = ((sizes.unsqueeze(1) * r).flatten().double() for r in (ratios.sqrt(), 1 / ratios.sqrt()))
        common = torch.minimum(sides[:, :1], width) * torch.minimum(sides[:, 1:], height)
        overlap = common / (sides.prod(1, keepdim=True) + width * height - common)
        return float((overlap.amax(1) >= MATCHED).double().mean())


class RetinaNet(nn.Module):
    """Levels -> Predicted. size: (H, W) of the images."""

    def __init__(self, features: Features, size: tuple[int, int], classes: int, width: int, anchors: Anchors) -> None:
        from torchvision.models.detection.retinanet import RetinaNetHead

        super().__init__()
        self.pyramid = Pyramid(features, width)
        self.predict = RetinaNetHead(width, len(SCALES) * len(anchors.ratios), classes)
        for tower in (self.predict.classification_head.conv, self.predict.regression_head.conv):
            for layer in tower.modules():
                if isinstance(layer, nn.Conv2d):  # its 0.01 is for 256 channels: of 64, next to nothing would be left
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.placed(self.pyramid.maps(features), size), persistent=False)

    def forward(self, features: Levels) -> Predicted:
        found = self.predict(self.pyramid(features))
        anchors = self.anchors.expand(found["cls_logits"].shape[0], -1, -1)
        return Predicted(found["cls_logits"], found["bbox_regression"], anchors)


# ---- loss


def retinanet_loss(outputs: Predicted, targets: Objects) -> Loss:
    """Focal loss of the scores and L1 of the boxes, each divided by an image's matched anchors; means over images."""
    from torchvision.ops import sigmoid_focal_loss

    scores, shifts, anchors = outputs.scores.float(), outputs.boxes.float(), outputs.anchors[0].float()
    given = padded(targets)
    with torch.no_grad():
        matches = matched(anchors, given, inside(targets.boxes.lengths, given.shape[1]))
    found = matches >= 0
    own = given.gather(1, matches.clamp_min(0).unsqueeze(2).expand(-1, -1, given.shape[2]))  # [B, A, 6]
    wanted = torch.zeros_like(scores)
    wanted[found, own[found][:, 4].long()] = 1.0
    per_image = found.sum(1).clamp_min(1)
    focal = sigmoid_focal_loss(scores, wanted, reduction="none").sum(2)
    classified = (focal * (matches != BETWEEN)).sum(1) / per_image
    image = found.nonzero()[:, 0]
    missed = (shifts[found] - encoded(own[found][:, :4], anchors.expand(len(scores), -1, -1)[found])).abs().sum(1)
    placed = torch.zeros_like(classified).index_add(0, image, missed) / per_image
    count = len(scores)
    return Loss({"classification": Term(classified.sum(), count), "box": Term(placed.sum(), count)})


def matched(anchors: Tensor, given: Tensor, there: Tensor) -> Tensor:
    """[B, A] which of an image's boxes [B, M, 6] each anchor [A, 4] stands for; NONE: background, BETWEEN: not asked.

    there: [B, M] whether it is a box. One that overlaps none enough has the anchor that it overlaps most. What a crowd
    covers is not asked: it is no background.
    """
    return torch.cat([_matched(anchors, *part) for part in in_parts(len(anchors), given, there)])


def _matched(anchors: Tensor, given: Tensor, there: Tensor) -> Tensor:
    crowd = there & (given[:, :, 5] > 0)
    own = there & ~crowd
    low = torch.maximum(given[:, :, None, :2], anchors[:, :2])  # [B, M, A, 2]
    high = torch.minimum(given[:, :, None, 2:4], anchors[:, 2:])
    common = (high - low).clamp_min(0).prod(3)
    boxes, area = (given[:, :, 2:4] - given[:, :, :2]).prod(2), (anchors[:, 2:] - anchors[:, :2]).prod(1)
    overlap = common / (boxes.unsqueeze(2) + area - common)
    overlap = overlap.where(own.unsqueeze(2), -1.0)
    most, matches = overlap.max(1)
    found = torch.where(most < UNMATCHED, NONE, torch.where(most < MATCHED, BETWEEN, matches))
    best = overlap.amax(2, keepdim=True)
    forced = ((overlap == best) & own.unsqueeze(2)).any(1)
    found = torch.where(forced, matches, found)
    covered = ((common / area) * crowd.unsqueeze(2)).amax(1) >= 0.5
    return torch.where(covered & (found == NONE), BETWEEN, found)


# ---- boxes and what is said of them


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """[N, 4] corners -> shifts of the centre in sides of the anchor, and logarithms of the sides' ratios."""
    (centre, sides), (own_centre, own_sides) = _centred(boxes), _centred(anchors)
    return torch.cat([(centre - own_centre) / own_sides, (sides / own_sides).log()], -1)


def decoded(shifts: Tensor, anchors: Tensor) -> Tensor:
    """The inverse; a side is at most 1000/16 of the anchor's."""
    centre, sides = _centred(anchors)
    middle = shifts[..., :2] * sides + centre
    half = shifts[..., 2:].clamp(max=math.log(1000 / 16)).exp() * sides / 2
    return torch.cat([middle - half, middle + half], -1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides


# ---- task


class Retinanet(Detection):
    """A RetinaNet's head; COCO's average precision."""

    def __init__(
        self, monitor: str = "map", width: int = 256, anchors: str = "data", least: float = 0.05, overlap: float = 0.5,
        most: int = 100,
    ) -> None:  # fmt: skip
        """anchors: data (as small and as long as train's boxes are) or coco (those of the paper)."""
        super().__init__(monitor, width, least, overlap, most)
        check_choice("anchors", anchors, ANCHORS)
        self.anchors = anchors

    def build_head(self, features: Features, spec: Any) -> nn.Module:
        levels = len(features.kept) if isinstance(features, Levels) else 0
        anchors = self.anchors_for(spec, levels + ADDED)
        return RetinaNet(features, spec.input_shape[1:], spec.num_classes, self.width, anchors)

    def anchors_for(self, spec: Any, levels: int) -> Anchors:
        """Of so many levels, as `anchors` says; what is told of them goes by that number."""
        self.levels = levels
        return Anchors.of(spec.boxes, levels) if self.anchors == "data" else Anchors.usual(levels)

    def loss(self, outputs: Predicted, batch: Batch) -> Loss:
        return retinanet_loss(outputs, batch.targets)

    def located(self, outputs: Predicted) -> Located:
        return Located(outputs.scores.float().sigmoid(), decoded(outputs.boxes.float(), outputs.anchors.float()))

    def fits(self, spec: Any) -> tuple[str, list[str]]:
        anchors = self.anchors_for(spec, self.levels)
        levels = [
            (f"{FIRST_STRIDE * 2**i} px", ", ".join(f"{s:g}" for s in sizes)) for i, sizes in enumerate(anchors.sizes)
        ]
        share = anchors.share_matched(spec.boxes) if spec.boxes else float("nan")
        ratios = ", ".join(f"{ratio:g}" for ratio in anchors.ratios)
        told = f"\n\nheight over width: {ratios}; can match {share:.1%} of train's boxes"
        few = f"the anchors can match {share:.0%} of train's boxes; another dataset.size may match more"
        return markdown_table(("stride", "sizes in px"), levels) + told, [few] if share < 0.9 else []
