"""Files that are damaged in every way: an image, or a ValueError that names the file, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hydratune.data.images.decode import check_header, decode
from tests.imagefuzz import ENDINGS, damaged_files, whole


@pytest.mark.parametrize("kind", ENDINGS)
def test_whole_files_are_read(kind: str, tmp_path: Path) -> None:
    for content in whole(kind):
        path = tmp_path / f"whole{ENDINGS[kind]}"
        path.write_bytes(content)
        assert decode(path, 8).shape == (3, 8, 8)


@pytest.mark.scenario(13)
@pytest.mark.parametrize("kind", ENDINGS)
def test_damaged_files_are_images_or_named(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began, read, refused = time.monotonic(), 0, 0
    for path in damaged_files(kind, 300, tmp_path):
        for look in (lambda p: decode(p, 8), check_header):
            try:
                found = look(path)
            except Exception as error:
                assert type(error) is ValueError and str(path) in str(error), repr(error)
                refused += 1
            else:
                assert found is None or (found.dtype == torch.uint8 and found.shape == (3, 8, 8))
                read += 1
    assert read and refused > 100
    assert time.monotonic() - began < 60
    said = capfd.readouterr()
    assert not said.out and (not said.err or kind == "TIFF")  # libtiff writes there itself
