"""Whether a network is the one that Keras trained: its padding and its epsilons are in no file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hydratune.models.keras.recognise import Found

NEAR = 0.01  # so near, relatively, an epsilon is met by moving the variances


def fitted(found: Found, network: nn.Module) -> tuple[dict[str, Tensor], str]:
    """(its tensors for this network, words on what was changed in them). Of a network with other names, as they are.

    Raises ValueError, with the overrides to type, where the network pads in another way or has other epsilons.
    """
    own, application = network.state_dict().keys(), found.application
    if len(own & found.tensors.keys()) * 2 < len(found.tensors):
        return found.tensors, ""
    if (place := _otherwise_padded(network, application.same)) is not None:
        ways = ("as TensorFlow does it, to the right and below", "on all sides")
        theirs, ours = ways if application.same else ways[::-1]
        raise ValueError(
            f"these weights are those of Keras' {application.name}, which pads its strides {theirs}; {place} of this "
            f"network pads {ours}. Type {application.overrides}"
        )
    tensors, moved = dict(found.tensors), 0.0
    for name, module in _norms(network):
        eps = float(module.eps)
        if abs(eps - application.eps) > NEAR * application.eps:
            raise ValueError(
                f"these weights are those of Keras' {application.name}, whose norms have an epsilon of "
                f"{application.eps:g}; that of {name} is {eps:g} here. Type {application.overrides}"
            )
        variance = tensors.get(f"{name}.running_var")
        if variance is not None and eps != application.eps:
            moved = application.eps - eps
            tensors[f"{name}.running_var"] = (variance.double() + moved).to(variance.dtype)
    return tensors, f"{moved:+.2g} on each running_var for Keras' epsilon of {application.eps:g}" if moved else ""


def _otherwise_padded(network: nn.Module, same: bool) -> str | None:
    """The first convolution whose stride is not padded so; None where all are."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > max(module.stride) > 1:
            # timm's class for padding that depends on the size of what it sees; it says of itself that it pads nothing
            dynamic = type(module).__name__ == "Conv2dSame"
            if dynamic != same:
                return name
    return None


def _norms(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            yield name, module
