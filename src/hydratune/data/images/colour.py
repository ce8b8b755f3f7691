"""Changes of colour: images alone have them, whatever is asked of their pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def jitter(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Brightness, contrast, saturation, in this order; grey is torchvision's 0.299 R + 0.587 G + 0.114 B."""
    brightness, contrast, saturation = (1 + strength * (2 * draws - 1)).view(-1, 3, 1, 1, 1).unbind(1)
    images = (images * brightness).clamp_(0, 1)
    images = torch.lerp(grey(images).mean((2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    return torch.lerp(grey(images), images, saturation).clamp_(0, 1)


def grey(images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 1, H, W]"""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
