"""A network of a user's own for processes that are hit: convolution, BatchNorm, dropout; it may strike itself.

FAULT=<where>:<signal> sends that signal to its own process: `start` when it is built, `train` in the sixth forward pass
of training, `evaluation` in the second one of evaluation. Once: a file FAULT.done marks that it was.
"""

import os
import signal
import time
from pathlib import Path

from torch import Tensor, nn

SLOW = float(os.environ.get("FAULT_SLOW", 0))  # seconds of a forward pass


def strike(where: str) -> None:
    wanted, _, name = os.environ.get("FAULT", "").partition(":")
    if wanted == where and not Path("FAULT.done").exists():
        Path("FAULT.done").touch()
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.2)


class Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width)
        self.trained = self.evaluated = 0

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SLOW)
        self.trained, self.evaluated = self.trained + self.training, self.evaluated + (not self.training)
        if self.training and self.trained == 6:
            strike("train")
        if not self.training and self.evaluated == 2:
            strike("evaluation")
        return self.bn(self.conv(x)).relu()


class Net(nn.Module):
    in_channels = 3

    def __init__(self, width: int = 4, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        strike("start")
        self.stem = Stem(width)
        if not norm:
            self.stem.bn = nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(width, 8, 3, stride=2), nn.ReLU(), nn.Dropout(dropout), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def layer_groups(self) -> list[tuple[str, nn.Module]]:
        return [("stem", self.stem), ("body", self.body)]
