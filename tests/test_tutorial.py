"""The tutorial does what it says, from pictures to an export."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parent.parent / "scripts" / "tutorial.py"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TUTORIAL)], cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (home,) = tmp_path.glob("hydratune-tutorial-*")
    said = re.search(r"done in \d+ s: (\S+), (\S+)", done.stdout)
    assert said is not None, done.stdout
    predicted, exported = map(Path, said.groups())
    with (predicted / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((home / "photos").glob("*/*"))) == 400
    right = sum(Path(row["file"]).parent.name == row["class"] for row in rows)
    assert right > 0.5 * len(rows)  # most of them it was trained on
    assert list(exported.glob("*.pt2"))
    board = re.findall(r"^([1-6]) (\w+) ([\d.]+) ([\d.]+)$", done.stdout, re.MULTILINE)
    assert [row[0] for row in board] == list("123456")
    assert float(board[0][3]) == max(float(row[3]) for row in board)
    assert not (tmp_path / "outputs").exists(), "the caller's directory stays clean"


def test_the_tutorial_is_a_notebook() -> None:
    """In jupytext's percent format: cells, no one of them empty, those of text all comments."""
    text = TUTORIAL.read_text()
    assert text.startswith("# ---\n# jupyter:\n")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    assert len(cells) > 8 and all(cell.strip() for cell in cells)
    for cell in cells:
        if cell.startswith(" [markdown]"):
            assert all(line.startswith("#") for line in cell.splitlines()[1:] if line)
