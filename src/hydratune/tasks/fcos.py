"""FCOS (arXiv 2006.09214) as a head on a body's levels: every place of a pyramid says which class it lies in, how far
the sides of its box are, and how near it is to the centre.

The head is torchvision's; matching and loss are done for a whole batch at once, with the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydratune.core.loss import Loss, Term
from hydratune.core.markdown import markdown_table
from hydratune.core.objects import Objects
from hydratune.core.ragged import inside
from hydratune.core.types import Batch, Features, Levels
from hydratune.tasks.detection import Detection, Located
from hydratune.tasks.pyramid import ADDED, FIRST_STRIDE, Pyramid, anchor_boxes, in_parts, padded

RADIUS = 1.5  # strides round the centre of a box in which a place stands for it
NEAREST, FARTHEST = 4, 8  # strides to the farthest side of the boxes that a level stands for
GROUPS = 32  # of the norms in torchvision's head
NONE, CROWD = -1, -2  # instead of the number of a box


class Places(NamedTuple):
    """What the head says of A places, all levels' one after the other."""

    scores: Tensor  # [B, A, K] logits
    sides: Tensor  # [B, A, 4] to the left, top, right and bottom, in strides
    centred: Tensor  # [B, A, 1] logits
    cells: Tensor  # [B, A, 4] a square of one stride round each place; the same for every image
    ranges: Tensor  # [B, A, 2] pixels to the farthest side of a box; the same for every image


class FCOS(nn.Module):
    """Levels -> Places. size: (H, W) of the images."""

    def __init__(self, features: Features, size: tuple[int, int], classes: int, width: int) -> None:
        from torchvision.models.detection.fcos import FCOSHead

        super().__init__()
        self.pyramid = Pyramid(features, width)
        self.predict = FCOSHead(width, 1, classes)
        maps = self.pyramid.maps(features)
        strides = [FIRST_STRIDE * 2**i for i in range(len(maps))]
        cells = anchor_boxes([(stride,) for stride in strides], (1.0,), maps, size)
        ranges = [r.expand(m.shape[2] * m.shape[3], 2) for m, r in zip(maps, ranges_of(strides), strict=True)]
        self.cells: Tensor
        self.ranges: Tensor
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("ranges", torch.cat(ranges), persistent=False)

    def forward(self, features: Levels) -> Places:
        found = self.predict(self.pyramid(features))
        scores = found["cls_logits"]
        cells, ranges = (t.expand(scores.shape[0], -1, -1) for t in (self.cells, self.ranges))
        return Places(scores, found["bbox_regression"], found["bbox_ctrness"], cells, ranges)


def ranges_of(strides: list[int]) -> Tensor:
    """[levels, 2] in pixels: between them lies the distance to the farthest side of a level's boxes."""
    least, most = ([float(times * stride) for stride in strides] for times in (NEAREST, FARTHEST))
    return torch.tensor([[0.0, *least[1:]], [*most[:-1], float("inf")]]).T


# ---- loss


def fcos_loss(outputs: Places, targets: Objects) -> Loss:
    """Focal loss of the scores, generalised IoU of the boxes, cross-entropy of being central: each a sum over images,
    divided by the number of places that stand for a box.
    """
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

    scores, centred, cells = outputs.scores.float(), outputs.centred.float().squeeze(2), outputs.cells[0]
    given = padded(targets)
    with torch.no_grad():
        there = inside(targets.boxes.lengths, given.shape[1])
        matches = matched(cells, outputs.ranges[0], given, there)
    found = matches >= 0
    own = given.gather(1, matches.clamp_min(0).unsqueeze(2).expand(-1, -1, given.shape[2]))[found]  # [N, 6]
    wanted = torch.zeros_like(scores)
    wanted[found, own[:, 4].long()] = 1.0
    focal = sigmoid_focal_loss(scores, wanted, reduction="none") * (matches != CROWD).unsqueeze(2)
    placed = boxes_of(outputs.sides.float(), outputs.cells)[found]
    box = generalized_box_iou_loss(placed, own[:, :4], reduction="sum")
    wanted_centred = centrality(own[:, :4], cells.expand(len(scores), -1, -1)[found])
    centre = F.binary_cross_entropy_with_logits(centred[found], wanted_centred, reduction="sum")
    count = found.sum()
    return Loss(
        {name: Term(s, count) for name, s in (("classification", focal.sum()), ("box", box), ("centre", centre))}
    )


def matched(cells: Tensor, ranges: Tensor, given: Tensor, there: Tensor) -> Tensor:
    """[B, A] which of an image's boxes [B, M, 6] each place stands for, of several the smallest; NONE: background,
    CROWD: not asked.

    cells: [A, 4], ranges: [A, 2]; there: [B, M] whether it is a box.
    """
    return torch.cat([_matched(cells, ranges, *part) for part in in_parts(4 * len(cells), given, there)])


def _matched(cells: Tensor, ranges: Tensor, given: Tensor, there: Tensor) -> Tensor:
    crowd = there & (given[:, :, 5] > 0)
    points, strides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2] - cells[:, 0]
    corners = given[:, None, :, :4]  # [B, 1, M, 4]
    middle = (corners[..., :2] + corners[..., 2:]) / 2
    near = (points[:, None] - middle).abs().amax(3) < RADIUS * strides[:, None]  # [B, A, M]
    sides = torch.cat([points[:, None] - corners[..., :2], corners[..., 2:] - points[:, None]], 3)
    within, farthest = sides.amin(3) > 0, sides.amax(3)
    fits = (farthest > ranges[:, :1]) & (farthest < ranges[:, 1:])
    area = (corners[..., 2:] - corners[..., :2]).prod(3)
    own = near & within & fits & (there & ~crowd)[:, None]
    smallest, matches = area.expand_as(own).where(own, float("inf")).min(2)
    covered = (within & crowd[:, None]).any(2)
    return torch.where(smallest < float("inf"), matches, torch.where(covered, CROWD, NONE))


def boxes_of(sides: Tensor, cells: Tensor) -> Tensor:
    """[..., 4] corners, from distances in strides."""
    middle, stride = (cells[..., :2] + cells[..., 2:]) / 2, (cells[..., 2:] - cells[..., :2])
    return torch.cat([middle - sides[..., :2] * stride, middle + sides[..., 2:] * stride], -1)


def centrality(boxes: Tensor, cells: Tensor) -> Tensor:
    """[N] 1 in the middle of a box, 0 at its edge (equation 3)."""
    middle = (cells[:, :2] + cells[:, 2:]) / 2
    low, high = middle - boxes[:, :2], boxes[:, 2:] - middle
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(1).sqrt()


# ---- task


class Fcos(Detection):
    """FCOS' head, which needs no anchors; COCO's average precision."""

    def __init__(
        self, monitor: str = "map", width: int = 256, least: float = 0.05, overlap: float = 0.5, most: int = 100
    ) -> None:
        super().__init__(monitor, width, least, overlap, most)
        if width % GROUPS or width == GROUPS:  # of a single number there is nothing to normalise
            near = max(round(width / GROUPS), 2) * GROUPS
            raise ValueError(f"dataset.task.width={width}: a multiple of {GROUPS} from {2 * GROUPS} on, such as {near}")

    def build_head(self, features: Features, spec: Any) -> nn.Module:
        head = FCOS(features, spec.input_shape[1:], spec.num_classes, self.width)
        self.levels = len(features.kept) + ADDED
        return head

    def loss(self, outputs: Places, batch: Batch) -> Loss:
        return fcos_loss(outputs, batch.targets)

    def located(self, outputs: Places) -> Located:
        probable = (outputs.scores.float().sigmoid() * outputs.centred.float().sigmoid()).sqrt()
        return Located(probable, boxes_of(outputs.sides.float(), outputs.cells))

    def fits(self, spec: Any) -> tuple[str, list[str]]:
        """Which level each of train's boxes has, seen from its centre."""
        strides = [FIRST_STRIDE * 2**i for i in range(self.levels)]
        farthest = torch.tensor([max(sides) / 2 for sides in spec.boxes])
        rows = []
        for stride, (low, high) in zip(strides, ranges_of(strides).tolist(), strict=True):
            share = float(((farthest >= low) & (farthest < high)).double().mean())
            rows.append((f"{stride} px", f"{2 * low:g} to {2 * high:g} px", f"{share:.1%}"))
        return markdown_table(("stride", "longer side of boxes", "of train's boxes"), rows), []
