"""Rotation and vertical flips: torchvision's arithmetic, one sampling with the crop, and what lies on an image too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

from hydratune.config.fingerprint import fingerprint
from hydratune.core.objects import Objects
from hydratune.core.ragged import Ragged
from hydratune.core.types import ImageSpec
from hydratune.data.images.augment import COLUMNS, Augment
from hydratune.data.images.geometry import resized_crop
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.stream import Batches, Placement
from tests.conftest import make_job

CPU = torch.device("cpu")
SPEC = ImageSpec((3, 24, 20), ("a", "b"), (0.5,) * 3, (0.25,) * 3)
SAME = torch.full((1, COLUMNS), 0.999)  # neither flipped nor moved


def pictures(count: int, height: int = 24, width: int = 20) -> Tensor:
    """Smooth, so that sampling twice is nearly sampling once."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def draws(**columns: float) -> Tensor:
    own = {"flip": 0, "rotate": 18, "vertical": 19}
    row = SAME.clone()
    for name, value in columns.items():
        row[:, own[name]] = value
    return row


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_images_are_turned_as_torchvision_turns_them(share: float) -> None:
    images, degrees = pictures(1), 40.0
    own = Augment(rotate=degrees).values(images, draws(rotate=share))
    angle = (2 * share - 1) * degrees
    theirs = V.rotate(images, angle, InterpolationMode.BILINEAR)
    middle = slice(3, -3)  # at the border torchvision does not mix what is outside in
    assert torch.allclose(own[..., middle, middle], theirs[..., middle, middle], atol=2e-3)
    far = theirs == 0
    assert float(own[far].mean() if far.any() else 0.0) < 0.05


def test_angles_are_uniform_in_both_directions() -> None:
    augment = Augment(rotate=15)
    degrees = augment.angles(augment.table(0, 0, 4000)) * 180 / math.pi
    assert float(degrees.abs().max()) <= 15 and abs(float(degrees.mean())) < 0.5
    assert float((degrees > 7.5).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_crop_of_the_turned_image_is_sampled_once() -> None:
    images, degrees = pictures(16), 30.0
    augment = Augment(rotate=degrees, resized_crop=(0.3, 0.6))
    table = augment.table(0, 0, 16)
    once = augment.values(images, table)
    twice = resized_crop(Augment(rotate=degrees).values(images, table), table[:, 3:7], (0.3, 0.6))
    assert float((once - twice).abs().median()) < 0.01
    assert torch.equal(Augment(rotate=0, resized_crop=(0.3, 0.6)).values(images, table),
                       resized_crop(images, table[:, 3:7], (0.3, 0.6)))  # fmt: skip


@pytest.mark.parametrize(("flips", "turned"), [({"flip": 0.1}, (3,)), ({"vertical": 0.1}, (2,)),
                                               ({"flip": 0.1, "vertical": 0.1}, (2, 3))])  # fmt: skip
def test_flips_are_of_their_own(flips: dict[str, float], turned: tuple[int, ...]) -> None:
    images = (pictures(1) * 255).to(torch.uint8)
    augment = Augment(flip=True, vertical_flip=True)
    assert torch.equal(augment.pixels(images, None, draws(**flips)), images.flip(turned))


def test_half_of_the_images_are_flipped_whatever_the_other_flip_does() -> None:
    table = Augment(flip=True, vertical_flip=True).table(0, 0, 4000)
    sides = (table[:, [0, 19]] < 0.5).float()
    assert sides.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert float((sides[:, 0] * sides[:, 1]).mean()) == pytest.approx(0.25, abs=0.03)


def test_a_mask_is_void_where_its_image_shows_nothing() -> None:
    masks = torch.full((1, 21, 21), 3, dtype=torch.uint8)
    turned = Augment(rotate=45).masks(masks, draws(rotate=1.0), 255)
    shown = Augment(rotate=45).values(torch.ones(1, 1, 21, 21), draws(rotate=1.0))[:, 0]
    assert set(turned.unique().tolist()) == {3, 255} and turned[0, 0, 0] == 255 and turned[0, 10, 10] == 3
    assert bool((shown[turned == 255] < 0.6).all()) and bool((shown[turned == 3] > 0.4).all())


def test_a_box_becomes_the_one_around_its_corners() -> None:
    objects = Objects(Ragged(torch.tensor([[10.0, 20, 30, 30, 1, 0]]), torch.tensor([1])), torch.ones(1, 2))
    quarter = Augment(rotate=90).objects(objects, draws(rotate=1.0), (40, 40))
    assert quarter.boxes.values[0, :4].tolist() == pytest.approx([20, 10, 30, 30], abs=1e-3)  # counter-clockwise
    eighth = Augment(rotate=45).objects(objects, draws(rotate=1.0), (40, 40))
    side = (20 + 10) / math.sqrt(2)
    left, top, right, bottom = eighth.boxes.values[0, :4].tolist()
    assert (right - left, bottom - top) == pytest.approx((side, side), abs=1e-3)
    below = Augment(vertical_flip=True).objects(objects, draws(vertical=0.1), (40, 40))
    assert below.boxes.values[0, :4].tolist() == [10, 10, 30, 20]


def test_a_box_that_is_turned_out_of_the_image_is_dropped() -> None:
    corner = Objects(Ragged(torch.tensor([[0.0, 0, 8, 8, 0, 0], [36, 36, 44, 44, 1, 0]]), torch.tensor([2])),
                     torch.ones(1, 2))  # fmt: skip
    moved = Augment(rotate=45).objects(corner, draws(rotate=1.0), (80, 80))
    assert moved.boxes.lengths.tolist() == [1] and moved.boxes.values[0, 4] == 1


def stream(augment: Augment | None, training: bool = True) -> ImageStream:
    images = (pictures(12) * 255).to(torch.uint8)
    split = MemorySplit(images, torch.arange(12) % 2)
    return ImageStream(split, SPEC, Batches(4, 3, training), Placement(CPU), 3, augment)


@pytest.mark.parametrize("augment", [Augment(rotate=20, vertical_flip=True), Augment(rotate=9, resized_crop=(0.5, 1))])
def test_a_stream_goes_on_from_any_step_and_epochs_differ(augment: Augment) -> None:
    whole, rest = list(stream(augment).batches(0, 7)), list(stream(augment).batches(4, 7))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(whole[4:], rest, strict=True))
    first, second = (torch.cat([b.inputs for b in whole[i : i + 3]])[torch.cat([b.ids for b in whole[i : i + 3]])
                     .argsort()] for i in (0, 3))  # fmt: skip
    assert not torch.equal(first, second)


def test_evaluation_turns_nothing_and_views_count() -> None:
    plain = next(stream(None, False).eval_batches()).inputs
    pixels = (pictures(12) * 255).to(torch.uint8)[:4].float()
    assert torch.allclose(plain, (pixels / 255 - 0.5) / 0.25, atol=1e-5)
    assert Augment(rotate=5, views=3).distinct == 3 and Augment(vertical_flip=True).distinct is None


@pytest.mark.parametrize("options", [{"rotate": -1.0}, {"rotate": 181.0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"dataset\.augment\.rotate="):
        Augment(**options)


def test_a_configuration_without_them_is_known_as_before(tmp_path: Path) -> None:
    """Runs that were made before there were such keys keep their fingerprints, caches and places in a sweep."""
    from hydratune.config.fingerprint import content

    def known(*overrides: str) -> dict[str, object]:
        config = make_job(["stage=pretrain", *overrides], tmp_path).config
        return content(config, {}, None, "", "fp32")

    plain = known()
    assert "rotate" not in str(plain) and "vertical_flip" not in str(plain) and "crop_padding" in str(plain)
    for override in ("dataset.augment.rotate=10", "dataset.augment.vertical_flip=true"):
        assert fingerprint(known(override)) != fingerprint(plain)
