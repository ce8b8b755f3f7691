"""What a trial's state is made of: optimizer tensors by parameter name, averages, and digests of what must not move."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<parameter>|<key>` -> tensor, for every parameter that has state."""
    return {
        f"{name}|{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse. Raises ValueError for state of a parameter that is not there or does not fit."""
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("|")
        if name not in parameters:
            raise ValueError(f"checkpoint: optimizer state of an unknown parameter, {name}")
        parameter = parameters[name]
        if tensor.ndim and tensor.shape != parameter.shape:
            raise ValueError(f"checkpoint: optimizer state {key} is {list(tensor.shape)}, not {list(parameter.shape)}")
        # `step` stays on the CPU, as torch's optimizers keep it
        fitted = tensor if tensor.ndim == 0 else tensor.to(parameter.device).contiguous(memory_format=layout(parameter))
        optimizer.state[parameter][field] = fitted


def layout(tensor: Tensor) -> torch.memory_format:
    """channels_last where the tensor lies so and not otherwise."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not tensor.is_contiguous() else torch.contiguous_format


class Swapped:
    """Within it the averaged weights are the network's."""

    def __init__(self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        self._pairs = [(p, averages[n]) for n, p in weights.items()]

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in self._pairs:
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def digest(tensors: Iterable[Tensor]) -> str:
    """Of every bit."""
    result = hashlib.blake2b()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        result.update(flat.view(torch.uint8).numpy().data)
    return result.hexdigest()


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
