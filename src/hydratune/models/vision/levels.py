"""Bodies that offer levels: outputs of several resolutions, for tasks that ask about pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hydratune.core.types import Levels


class Level(nn.Module):
    """A layer group between levels: what it gives goes on to the next one, and, if `keep`, to the head as well."""

    def __init__(self, module: nn.Module, keep: bool) -> None:
        super().__init__()
        self.module, self.keep = module, keep

    def forward(self, features: Tensor | Levels) -> Levels:
        kept, x = features if isinstance(features, Levels) else ((), features)
        y = self.module(x)
        return Levels((*kept, y), y) if self.keep else Levels(kept, y)


def with_levels(groups: Sequence[tuple[str, nn.Module]], kept: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The groups, of which those named in `kept` give a level each, the finest first. None of them may pool."""
    return [(name, Level(module, name in kept)) for name, module in groups]
