"""Data that is broken, changed, or hardly there."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from hydratune.core.types import ImageSpec
from hydratune.data.images.augment import Augment
from hydratune.data.images.file_split import FileSplit
from hydratune.data.images.folder import ImageFolder
from hydratune.data.images.image_dataset import ImageDataset
from hydratune.data.images.image_stream import ImageStream, MemorySplit
from hydratune.data.stream import Batches, Placement
from hydratune.tasks.classification import Classification
from tests.faults.harness import NET, allowed, run
from tests.tiny import CPU, SPEC, go, network, stream, trial


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    home = tmp_path / "photos"
    for i in range(24):
        path = home / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (36, 36), (10 * i, 100 * (i % 2), 0)).save(path)
    return home


FOLDER = [
    "dataset=image_folder", "dataset.root=photos", "dataset.size=32", "dataset.val_share=0.2", "dataset.test_share=0.2",
    *(o for o in NET if not o.startswith(("dataset", "batch_size"))), "batch_size=4", "hydra.run.dir=run",
]  # fmt: skip


def folder(home: Path, **options: Any) -> ImageFolder:
    return ImageFolder(Classification(), Augment(), str(home), size=8, **options)


@pytest.mark.scenario(12)
def test_samples_and_epochs_have_noise_of_their_own() -> None:
    augment = Augment(flip=True, crop_padding=2)
    tables = [augment.table(7, epoch, 50) for epoch in range(3)]
    rows = torch.cat(tables)
    assert len(torch.unique(rows, dim=0)) == 150  # no two samples, no two epochs alike
    assert torch.equal(augment.table(7, 1, 50), tables[1])


@pytest.mark.scenario(12)
def test_another_number_of_workers_goes_on_bitwise(photos: Path) -> None:
    paths, labels = folder(photos)._files["train"]
    augment = Augment(flip=True, crop_padding=1)

    def batches(workers: int, first: int) -> list[Tensor]:
        split = FileSplit(paths, labels, 8, workers)
        return [
            b.inputs for b in ImageStream(split, SPEC, Batches(3, 2), Placement(CPU), 3, augment).batches(first, 12)
        ]

    whole = batches(0, 0)
    for workers, first in ((2, 5), (4, 7)):
        assert all(torch.equal(a, b) for a, b in zip(batches(workers, first), whole[first:], strict=True))


@pytest.mark.scenario(13)
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n not really"])
def test_broken_images_are_named_and_left_out_where_that_is_asked(
    photos: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (0, 2):
        (photos / "cat" / f"bad{i}.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/bad\d\.png is not a readable image"):
        [folder(photos).read(name) for name in ("train", "val", "test")]
    with pytest.raises(ValueError, match=r"skip_broken=1: 2 files are no whole images.*bad"):
        folder(photos, skip_broken=1).read("train")
    data = folder(photos, skip_broken=2)
    assert sum(len(data.read(name)[1]) for name in ("train", "val", "test")) == 24
    said = capsys.readouterr().out
    assert said.count("left out") >= 2 and "bad0.png" in said and "bad2.png" in said


@pytest.mark.scenario(14)
def test_data_that_changed_is_refused_with_both_fingerprints(tmp_path: Path, photos: Path) -> None:
    done = run(*FOLDER, "epochs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "another.png")
    # what is there is complete: only the last checkpoint is left to go on from
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"status": "complete"', '"status": "interrupted"'))
    before, after = folder(photos).files(), None
    again = run(*FOLDER, "epochs=2", "resume=auto", cwd=tmp_path)
    assert again.returncode == 2 and "files: " in again.stderr and "->" in again.stderr, again.stderr
    old, new = again.stderr.split("files: ")[1].split(".")[0].split(" -> ")
    assert old != new and new.startswith(before[:32]) and after is None


class Given(ImageDataset):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(Classification(), Augment())
        self.images, self.labels = images, labels

    def spec(self) -> ImageSpec:
        return SPEC

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        return self.images, self.labels


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.scenario(15)
def test_no_samples_and_labels_out_of_range_are_said() -> None:
    with pytest.raises(ValueError, match="the train split is empty"):
        Given(pictures(0), torch.zeros(0, dtype=torch.long)).split("train")
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"labels of train reach from .* but there are 3 classes"):
            Given(pictures(2), torch.tensor([0, label])).split("train")


@pytest.mark.scenario(15)
def test_one_sample_trains_and_counts_once(tmp_path: Path) -> None:
    one = ImageStream(MemorySplit(pictures(1), torch.tensor([1])), SPEC, Batches(8, 5), Placement(CPU))
    t = trial(tmp_path, network(), steps=3)
    go([t], data=one, every=1)
    assert len(t.state.history) == 3
    assert [len(b.ids) for b in one.eval_batches()] == [1]


@pytest.mark.scenario(15)
def test_a_last_batch_of_one_is_left_out_in_training_and_counted_in_evaluation(tmp_path: Path) -> None:
    """BatchNorm on a batch of one has no variance."""
    data = stream(batch_size=8, n=41)
    assert data.steps_per_epoch == 5 and {len(b.ids) for b in data.batches(0, 10)} == {8}
    counted = [i for b in data.eval_batches() for i in b.ids.tolist()]
    assert sorted(counted) == list(range(41))
    t = trial(tmp_path, network(), steps=6)
    go([t], data=data, every=5)
    assert t.failed is None


@pytest.mark.scenario(33)
def test_a_worker_that_fails_ends_the_run_and_leaves_no_process(tmp_path: Path, photos: Path) -> None:
    """Images are decoded as they are needed; one is destroyed after the first look at the folder."""
    options = [*FOLDER, "dataset.memory_mb=0", "dataset.workers=2", "dataset.mean=[0.5,0.5,0.5]",
               "dataset.std=[0.2,0.2,0.2]"]  # fmt: skip
    for path in photos.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    began = time.monotonic()
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 2 and "is not a readable image" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - began < allowed(30)
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
