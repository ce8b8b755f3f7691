"""COCO's average precision of boxes, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

INSTALL = "pip install 'hydratune[detection]'"
SIZES = ("all", "small", "medium", "large")  # below 32^2 pixels, below 96^2, above


@dataclass(frozen=True)
class Precision:
    """Shares; NaN where there is nothing to be found.

    mean: over overlaps from 0.5 to 0.95, and classes; at_50, at_75: at one overlap; by_class: of each class likewise,
    and at 0.5; by_size: mean for each of SIZES.
    """

    mean: float
    at_50: float
    at_75: float
    by_class: list[tuple[float, float]]
    by_size: list[float]


def check_installed() -> None:
    if find_spec("faster_coco_eval") is None:
        raise ValueError(f"dataset.task: average precision is measured by faster-coco-eval; {INSTALL}")


def average_precision(truth: Tensor, found: Tensor, images: Sequence[int], classes: int) -> Precision:
    """truth: [S, 7] number of the image, left, top, right, bottom, class, whether it is a crowd; found: [M, 7]
    likewise, with the score at last. images: all that were looked at.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    listed = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        "annotations": [
            {"id": n, "iscrowd": int(crowd), "area": w * h, **_box(image, (x, y, w, h), label)}
            for n, (image, x, y, w, h, label, crowd) in enumerate(_with_sides(truth), start=1)
        ],
    }
    there = COCO(listed, print_function=_quiet)
    answers = [
        {"score": score, **_box(image, (x, y, w, h), label)} for image, x, y, w, h, label, score in _with_sides(found)
    ]
    if not answers:
        wanted = [bool(((truth[:, 5] == k) & (truth[:, 6] == 0)).any()) for k in range(classes)]
        nothing = [(0.0, 0.0) if asked else (torch.nan, torch.nan) for asked in wanted]
        return Precision(0.0, 0.0, 0.0, nothing, [0.0] + [torch.nan] * 3)
    judge = COCOeval_faster(there, there.loadRes(answers), "bbox", print_function=_quiet)
    judge.evaluate()
    judge.accumulate()
    # [overlap, recall, class, size, most boxes], -1 where there is nothing to be found
    precision = torch.from_numpy(judge.eval["precision"]).double()[..., -1]
    return Precision(
        _mean(precision[:, :, :, 0]),
        _mean(precision[0, :, :, 0]),
        _mean(precision[5, :, :, 0]),
        [(_mean(precision[:, :, k, 0]), _mean(precision[0, :, k, 0])) for k in range(classes)],
        [_mean(precision[:, :, :, s]) for s in range(len(SIZES))],
    )


def _with_sides(rows: Tensor) -> list[list[float]]:
    """Corners become a corner and sides."""
    rows = rows.double()
    return torch.cat([rows[:, :3], rows[:, 3:5] - rows[:, 1:3], rows[:, 5:]], 1).tolist()


def _box(image: float, box: tuple[float, float, float, float], label: float) -> dict[str, object]:
    return {"image_id": int(image), "bbox": list(box), "category_id": int(label)}


def _mean(values: Tensor) -> float:
    there = values[values > -1]
    return float(there.mean()) if len(there) else torch.nan


def _quiet(*said: object) -> None:
    """It would print."""
