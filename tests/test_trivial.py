"""TrivialAugmentWide for a batch against torchvision's operations, one at a time, on the same uint8 images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from hydratune.data.images.geometry import MOVES
from hydratune.data.images.trivial import BINS, OPERATIONS, PIXELWISE, trivial_augment

SIGNED = [*MOVES, "Brightness", "Color", "Contrast", "Sharpness"]
MAGNITUDES = [0, 1, 8, 15, 20, 24, 30]


def make_images(channels: int = 3, height: int = 24, width: int = 32) -> Tensor:
    """uint8 [4, C, H, W]: noise, a dim gradient, bright noise, one flat colour."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (channels, height, width), generator=g)
    gradient = (
        40 + torch.arange(height).view(-1, 1) + 2 * torch.arange(width) + 5 * torch.arange(channels).view(-1, 1, 1)
    )
    flat = torch.full_like(noise, 90)
    return torch.stack([noise, gradient, 128 + noise // 2, flat]).to(torch.uint8)


def draws_for(name: str, magnitude: int, negative: bool, count: int) -> Tensor:
    row = [(OPERATIONS.index(name) + 0.5) / len(OPERATIONS), (magnitude + 0.5) / BINS, 0.25 if negative else 0.75]
    return torch.tensor(row).expand(count, 3)


def expected(images: Tensor, name: str, magnitude: int, negative: bool) -> Tensor:
    """What torchvision does; magnitudes in whole numbers where its float linspace would cut off a pixel."""
    sign = -1 if negative else 1
    shear = math.degrees(math.atan(sign * 0.99 * magnitude / 30))
    shift, factor = sign * (32 * magnitude // 30), 1 + sign * 0.99 * magnitude / 30
    match name:
        case "Identity":
            return images
        case "ShearX":
            return reference.affine(images, 0.0, [0, 0], 1.0, [shear, 0.0], center=[0.0, 0.0])
        case "ShearY":
            return reference.affine(images, 0.0, [0, 0], 1.0, [0.0, shear], center=[0.0, 0.0])
        case "TranslateX":
            return reference.affine(images, 0.0, [shift, 0], 1.0, [0.0, 0.0])
        case "TranslateY":
            return reference.affine(images, 0.0, [0, shift], 1.0, [0.0, 0.0])
        case "Rotate":
            return reference.rotate(images, sign * 4.5 * magnitude)
        case "Brightness":
            return reference.adjust_brightness(images, factor)
        case "Color":
            return reference.adjust_saturation(images, factor)
        case "Contrast":
            return reference.adjust_contrast(images, factor)
        case "Sharpness":
            return reference.adjust_sharpness(images, factor)
        case "Posterize":
            return reference.posterize(images, 8 - round(magnitude / 5))
        case "Solarize":
            return reference.solarize(images, 8.5 * (30 - magnitude))
        case "AutoContrast":
            return reference.autocontrast(images)
        case "Equalize":
            return reference.equalize(images)
    raise AssertionError(name)


def test_operations_and_ranges_are_torchvisions() -> None:
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert list(space) == list(OPERATIONS)
    assert [name for name, (_, signed) in space.items() if signed] == SIGNED
    for name, largest in MOVES.items():
        want = float(space[name][0](BINS, 32, 32)[-1])
        assert largest == pytest.approx(math.radians(want) if name == "Rotate" else want)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_matches_torchvision(name: str, channels: int) -> None:
    images = make_images(channels)
    for magnitude in MAGNITUDES:
        for negative in (False, True):
            got = trivial_augment(images / 255, draws_for(name, magnitude, negative, len(images))) * 255
            off = (got - expected(images, name, magnitude, negative and name in SIGNED)).abs()
            where = f"{name} {magnitude} {'-' if negative else '+'}: {off.max():.3f} off"
            if name in MOVES:  # nearest pixel: a tie may fall either way
                assert (off <= 2).float().mean() >= 0.99, where
            elif name in ("Brightness", "Color", "Contrast", "Sharpness"):  # cut to whole numbers: 133.0 or 132.9999
                assert off.max() <= 1.001, where
                assert (off[:3] > 0.001).float().mean() < 0.05, where  # all of the flat image falls one way
            else:
                assert off.max() < 0.001, where


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Identity"])
def test_every_operation_does_something(name: str) -> None:
    images = make_images() / 255
    assert not torch.allclose(trivial_augment(images, draws_for(name, 24, True, len(images))), images, atol=1e-3)


def test_sample_does_not_depend_on_its_neighbours() -> None:
    images = make_images().repeat(32, 1, 1, 1) / 255
    draws = torch.rand(len(images), 3, generator=torch.Generator().manual_seed(1))
    assert len((draws[:, 0] * len(OPERATIONS)).long().unique()) == len(OPERATIONS)
    images_before, draws_before = images.clone(), draws.clone()
    together = trivial_augment(images, draws)
    assert torch.equal(together, trivial_augment(images, draws))
    assert torch.equal(images, images_before) and torch.equal(draws, draws_before)  # pure
    alone = torch.cat([trivial_augment(images[i : i + 1], draws[i : i + 1]) for i in range(len(images))])
    assert torch.equal(together, alone)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    assert torch.equal(together[order], trivial_augment(images[order], draws[order]))


def test_draws_cover_both_ends() -> None:
    images = make_images() / 255
    almost_one = 1 - 2**-24  # the largest float32 that torch.rand returns
    assert torch.equal(trivial_augment(images, torch.zeros(4, 3)), images)
    last = trivial_augment(images, torch.full((4, 3), almost_one))
    assert torch.equal(last, trivial_augment(images, draws_for("Equalize", 0, False, 4)))
    draws = draws_for("Posterize", 0, False, 4).clone()
    draws[:, 1] = almost_one
    assert torch.equal(trivial_augment(images, draws), trivial_augment(images, draws_for("Posterize", 30, False, 4)))


@pytest.mark.parametrize("name", PIXELWISE)
def test_pixel_operations_see_whole_values(name: str) -> None:
    """A resized image lies between the 256 levels; the result is that of the rounded one, and stays within 0..1."""
    images = make_images()
    between = (images + 0.8 * torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) - 0.4) / 255
    draws = draws_for(name, 20, False, len(images))
    result = trivial_augment(between, draws)
    assert torch.equal(result, trivial_augment(images / 255, draws))
    assert result.dtype == between.dtype and result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("side", [1, 2])
def test_tiny_images_have_no_inside_to_sharpen(side: int) -> None:
    images = make_images(1, side, side) / 255
    torch.testing.assert_close(trivial_augment(images, draws_for("Sharpness", 30, False, 4)), images)
