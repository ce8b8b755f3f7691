"""Images to be predicted, read as those were that the network was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.objects import COLUMNS, Objects
from hydratune.core.ragged import Ragged
from hydratune.core.task import Task
from hydratune.core.types import ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_split import threads
from hydratune.data.images.frame import GREY as MARGIN
from hydratune.data.images.frame import Frame
from hydratune.data.images.image_dataset import ImageDataset
from hydratune.data.images.image_stream import IGNORED
from hydratune.data.images.walk import EXTENSIONS, walk
from hydratune.data.inputs import Item
from hydratune.data.text.text_files import parts_of
from hydratune.data.text.text_tables import TABLES, Form, cell, table_rows

WORKERS = max(min((os.cpu_count() or 2) // 2, 8), 1)  # more would only take the cores that compute
GREY = torch.tensor([19595, 38470, 7471]).view(3, 1, 1)  # ITU-R 601 in 1/65536, as PIL has it


class ImageInputs(ImageDataset):
    """spec: of the data that the network was trained on. column: that of the paths, where a table lists them."""

    chunk = 2**31

    def __init__(
        self, task: Task, augment: Augment, spec: ImageSpec, white: float | None = None, column: str = "image"
    ) -> None:
        super().__init__(task, augment)
        if spec.input_shape[0] not in (1, 3):
            raise ValueError(f"inputs: files are read as images of 1 or 3 channels, and not as {spec.input_shape}")
        self._spec, self._white, self._column = spec, white, column
        self._frame = Frame.of_spec(spec)

    def spec(self) -> ImageSpec:
        return self._spec

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        raise ValueError(f"inputs: have no {name} split")

    def items(self, given: Sequence[Any]) -> list[Item]:
        """Files, folders with everything below them, tables that list paths; PIL images; tensors [C, H, W]."""
        return [item for number, one in enumerate(given) for item in self._items(one, number)]

    def _items(self, given: Any, number: int) -> Iterator[Item]:
        if not isinstance(given, str | Path):
            yield Item(given, {"file": f"input {number}"})
            return
        path = Path(given).expanduser()
        if path.is_dir():
            images = sorted(walk(path).images)
            if not images:
                raise ValueError(f"inputs={given}: holds no images ({', '.join(EXTENSIONS)})")
            yield from (Item(f"{path}/{name}", {"file": name}) for name in images)
        elif path.suffix.lower() in TABLES:
            yield from self._listed(path)
        else:
            yield Item(str(path), {"file": str(given)})

    def _listed(self, table: Path) -> Iterator[Item]:
        for files in parts_of(table, TABLES).files.values():
            for file in files:
                for where, (value,) in table_rows(file, Form(), [("image", self._column)]):
                    name = cell(value, f"{self._column} of {where}").strip()
                    yield Item(str(file.parent / name), {"file": name})

    def example_inputs(self, count: int) -> Mapping[str, Tensor]:
        """[count, C, H, W] normalised noise"""
        draws = torch.Generator().manual_seed(0)
        return {"images": torch.randn(count, *self._spec.input_shape, generator=draws)}

    def made_how(self) -> Mapping[str, Any]:
        square = "square" if self._frame.height == self._frame.width else "part of that shape"
        cut = f"the middle {square}" if self._frame.fit == "crop" else f"whole, with margins of {MARGIN} around it"
        return {
            "images": "[N, C, H, W] float32: (pixel / 255 - mean) / std per channel",
            "resize": f"turned as EXIF says, transparent parts white, {cut}, bilinear with antialiasing",
        }

    def split_of(self, items: Sequence[Item]) -> GivenImages:
        made = GivenScenes if self.task.kind == "boxes" else GivenImages
        return made([item.content for item in items], self._spec.input_shape[0], self._frame, self._white)

    def kept(self, item: Item, mask: Tensor) -> Any:
        """[H, W] class numbers as a PNG of the image's own size, 255 where it was cut off."""
        from PIL import Image

        from hydratune.data.images.decode import size_of

        size = size_of(item.content)
        left, top, right, bottom = self._frame.taken(*size)
        picture = Image.new("L", size, IGNORED)
        seen = Image.fromarray(mask.numpy()).crop(self._frame.placed(*size))
        picture.paste(seen.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
        return picture


class GivenImages:
    """Images that are decoded when they are read. faults: number -> why it could not be; it is black then."""

    def __init__(self, contents: Sequence[Any], channels: int, frame: Frame, white: float | None) -> None:
        self.labels = self._labels(len(contents))
        self.faults: dict[int, str] = {}
        self._contents, self._channels, self._frame, self._white = list(contents), channels, frame, white

    def _labels(self, count: int) -> Tensor | None:
        """Nobody knows them."""
        return torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._contents)

    def read(self, ids: Tensor) -> Tensor:
        return next(self.read_ahead([ids]))

    def read_ahead(self, batches: Sequence[Tensor], ahead: int = 2) -> Iterator[Tensor]:
        """[B, C, H, W] uint8; in the order asked for, `ahead` batches being decoded while one is used."""
        with threads(WORKERS) as pool:
            waiting: list[list[Future[list[Tensor]]]] = []
            for batch in batches:
                parts = batch.tensor_split(
                    min(len(batch), 2 * WORKERS)
                )  # a task each would cost as much as a thumbnail
                waiting.append([pool.submit(self._decoded, part.tolist()) for part in parts])
                if len(waiting) > ahead:
                    yield self._stacked(waiting.pop(0))
            for futures in waiting:
                yield self._stacked(futures)

    def _stacked(self, futures: Sequence[Future[list[Tensor]]]) -> Tensor:
        images = torch.stack([image for future in futures for image in future.result()])
        if self._channels == 1:
            images = ((images.int() * GREY).sum(1, keepdim=True) + 2**15 >> 16).to(torch.uint8)
        return images

    def _decoded(self, numbers: Sequence[int]) -> list[Tensor]:
        from hydratune.data.images.decode import decode, given

        images = []
        for i in numbers:
            content = self._contents[i]
            try:
                path = isinstance(content, str)
                images.append(decode(Path(content), self._frame, self._white) if path else given(content, self._frame))
            except ValueError as error:
                self.faults[i] = str(error).removeprefix("dataset: ")
                images.append(torch.zeros(3, self._frame.height, self._frame.width, dtype=torch.uint8))
        return images


class GivenScenes(GivenImages):
    """Pictures of which is asked where things are: the answers lie in their own pixels."""

    def _labels(self, count: int) -> Tensor | None:
        return None

    def read_objects(self, ids: Tensor) -> Objects:
        """No boxes, and the size of each picture; of one that cannot be read, that of the frame."""
        sizes = torch.tensor([self._size(i) for i in ids.tolist()], dtype=torch.float32)
        nothing = torch.zeros(0, COLUMNS)
        return Objects(Ragged(nothing, torch.zeros(len(ids), dtype=torch.int64)), sizes.view(-1, 2))

    def _size(self, number: int) -> tuple[int, int]:
        from hydratune.data.images.decode import size_of

        try:
            return size_of(self._contents[number])
        except (OSError, ValueError):
            return self._frame.width, self._frame.height


def options_of(dataset: ImageDataset) -> Mapping[str, Any]:
    """What a set of files says of how they are read."""
    own = {"white": getattr(dataset, "white", None), "column": getattr(dataset, "image", None)}
    return {key: value for key, value in own.items() if value is not None}
