"""The one TensorBoard writer of a run directory."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hydratune.core.markdown import as_shown


def load() -> None:
    """Import it now; for a process that others are forked from."""
    import tensorboard.plugins.hparams.metadata  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401


class Board:
    """Scalars, pictures, text and HParams in one event file, in the run directory itself."""

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        """first_step: what was told beyond it is told again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first_step + 1 if first_step else 0)
        self._first_step = first_step

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(as_shown(tag), value, step)

    def text(self, tag: str, markdown: str, step: int | None = None) -> None:
        self._writer.add_text(as_shown(tag), as_shown(markdown), self._first_step if step is None else step)

    def picture(self, tag: str, image: Tensor, step: int) -> None:
        """image: [3, H, W] uint8"""
        self._writer.add_image(as_shown(tag), image, step)

    def hparams(
        self, hparams: Mapping[str, Any], metrics: Mapping[str, float], step: int, first: Collection[str] = ()
    ) -> None:
        """Into this run's own file: SummaryWriter.add_hparams would start a run of its own beneath it.

        metrics: in the order of their columns. first: hparams whose columns come before the others, as TensorBoard
        shows five.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams as summaries

        plain = {as_shown(k): v if isinstance(v, bool | int | float) else as_shown(str(v)) for k, v in hparams.items()}
        columns, *session = summaries(plain, dict(metrics))
        told = HParamsPluginData.FromString(columns.value[0].metadata.plugin_data.content)
        for info in told.experiment.hparam_infos:
            info.differs = info.name in first  # which is what it sorts them by
        columns.value[0].metadata.plugin_data.content = told.SerializeToString()
        for summary in (columns, *session):
            self._writer._get_file_writer().add_summary(summary)
        self.scalars(metrics, step)

    def flush(self) -> None:
        """All of it is in the file now."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def sizes(directory: Path) -> dict[str, int]:
    """Bytes of each event file."""
    return {path.name: path.stat().st_size for path in directory.glob("events.out.tfevents.*")}


def cut_back(directory: Path, earlier: Mapping[str, int]) -> None:
    """Event files as they were when they had these sizes: they only grow."""
    for name, size in sizes(directory).items():
        if name not in earlier:
            (directory / name).unlink()
        elif size > earlier[name]:
            os.truncate(directory / name, earlier[name])


class SilentBoard(Board):
    """Writes nothing."""

    def __init__(self) -> None: ...

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, tag: str, markdown: str, step: int | None = None) -> None: ...

    def picture(self, tag: str, image: Tensor, step: int) -> None: ...

    def hparams(
        self, hparams: Mapping[str, Any], metrics: Mapping[str, float], step: int, first: Collection[str] = ()
    ) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...
