"""Weights and images that are a function of their names, so that Keras and the tests have the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# mean and variance are those of a Normalization layer within the network
IMAGENET = {"mean": (0.485, 0.456, 0.406), "variance": (0.229**2, 0.224**2, 0.225**2)}
PUBLISHED = {"mean": IMAGENET["mean"], "variance": (0.229, 0.224, 0.225)}  # of EfficientNet's files, see record.py
RANGES = {"gamma": (0.6, 1.4), "beta": (-0.3, 0.3), "bias": (-0.3, 0.3), "moving_mean": (-0.3, 0.3),
          "moving_variance": (0.5, 1.5)}  # fmt: skip


def uniform(name: str, shape: Sequence[int]) -> Any:
    """float64 in [0, 1), by the raw numbers of PCG64, which no version of NumPy changes."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape, dtype=np.int64)))
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(tuple(shape))


def value(layer: str, variable: str, shape: Sequence[int], published: bool = False) -> Any:
    """float64 that float32 has too. layer, variable: as Keras calls them, such as stem_conv and kernel."""
    if variable in IMAGENET:
        return np.array((PUBLISHED if published else IMAGENET)[variable], "f4").astype("f8")
    if variable == "count":
        return np.zeros(shape, "i4")
    name, drawn = f"{layer}/{variable}", uniform(f"{layer}/{variable}", shape)
    if name.endswith("layer_scale/gamma"):
        low, high = -0.5, 0.5
    elif variable in RANGES:
        low, high = RANGES[variable]
    else:  # a kernel: what comes out is about as large as what went in, however deep the network is
        fan_in = int(np.prod(shape[:3] if shape[-1] != 1 else shape[:2])) if len(shape) == 4 else shape[0]
        high = (3 / fan_in) ** 0.5
        low = -high
    return (low + (high - low) * drawn).astype("f4").astype("f8")


def pixels(size: int) -> Any:
    """[2, size, size, 3] from 0 to 255, float64; smooth enough that strides and padding matter everywhere."""
    return uniform("pixels", (2, size, size, 3)) * 255


def usual(layer: str, variable: str) -> str:
    """Where Keras' .h5 files have a tensor, but for those of models within models."""
    return f"model_weights/{layer}/{layer}/{variable}"
