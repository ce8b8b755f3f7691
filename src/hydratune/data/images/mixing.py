"""mixup and cutmix: blends of two samples of a batch, f(seed, step)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydratune.core.seeding import derive_seed


class Mixing:
    """mixup, cutmix: alpha of the Beta distribution (arXiv 1710.09412, 1905.04899); with both, each step takes one."""

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for key, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise ValueError(f"dataset.augment.{key}={value}: must not be below 0")
        self.mixup, self.cutmix = mixup, cutmix

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def mix(self, images: Tensor, targets: Tensor, num_classes: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """mixup or cutmix with a partner within the global batch: f(seed, step). Class numbers become
        [B, K], numbers their weighted mean.
        """
        if not self.mixes:
            return images, targets
        # numpy's Beta: torch.distributions draws from the default generator only
        import numpy as np

        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "mix", step)))
        cut = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        weight = float(rng.beta(alpha, alpha))
        partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        if cut:
            height, width = images.shape[2:]
            h, w = round(height * (1 - weight) ** 0.5), round(width * (1 - weight) ** 0.5)
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            images = images.clone()
            images[:, :, top : top + h, left : left + w] = images[partner, :, top : top + h, left : left + w]
            weight = 1 - h * w / (height * width)
        else:
            images = torch.lerp(images[partner], images, weight)
        shares = targets if targets.is_floating_point() else F.one_hot(targets, num_classes)
        shares = shares.to(images.dtype)
        return images, torch.lerp(shares[partner], shares, weight)
