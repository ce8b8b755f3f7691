"""A table that is written row by row, and goes on after a kill where it was: CSV, JSON lines, Parquet, COCO."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hydratune.core.markdown import harmless
from hydratune.record.run import write_json

PROGRESS = "progress.json"
UNREADABLE = "unreadable.txt"
EVERY = 1.0  # seconds between two times at which what is written is sure
CONVERTED = {"parquet": ".parquet", "coco": ".json"}  # in the end, from JSON lines
ANSWERS = ("class", "labels")  # columns whose values are counted


class Table:
    """`predictions.csv` or its like in a directory. Rows are sure once `flush` has been called."""

    def __init__(self, directory: Path, form: str, known: Mapping[str, Any]) -> None:
        """form: csv, jsonl; parquet and coco are JSON lines, converted in the end. known: as PROGRESS has it."""
        self.directory, self.form = directory, form
        self.done: int = known.get("done", 0)
        self.columns: list[str] = list(known.get("columns", ()))
        self.faults: list[str] = list(known.get("faults", ()))
        self.counts: Counter[str] = Counter(known.get("counts", {}))
        self._path = directory / f"predictions.{'csv' if form == 'csv' else 'jsonl'}"
        self._file: IO[bytes] = open(self._path, "r+b" if known else "wb")  # noqa: SIM115
        self._file.truncate(known.get("bytes", 0))
        self._file.seek(0, 2)
        self._buffer = io.StringIO()
        self._writer = csv.writer(self._buffer, lineterminator="\n")  # a float is written as its repr
        self._began, self._first, self._sure = time.perf_counter(), self.done, time.perf_counter()

    @staticmethod
    def opened(directory: Path, form: str, resumed: bool) -> Table:
        """Goes on with one that was broken off, where that is asked for.

        Raises ValueError for Parquet without pyarrow, and for another form than it was begun in.
        """
        if form == "parquet":
            _pyarrow()
        path = directory / PROGRESS
        known = json.loads(path.read_text()) if resumed and path.is_file() else {}
        if known and known["form"] != form:
            raise ValueError(f"format={form}: {directory} was begun with format={known['form']}")
        return Table(directory, form, known)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def unreadable(self) -> int:
        return len(self.faults)

    def rate(self) -> float:
        """Rows per second."""
        return (self.done - self._first) / max(time.perf_counter() - self._began, 1e-9)

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises ValueError for a row with other columns than those before it, in CSV."""
        if self.form == "csv":
            if not self.columns:
                self.columns = list(row)
                self._writer.writerow(map(harmless, self.columns))
            values = list(row.values())
            if list(row) != self.columns:
                values = self._in_order(row)
            self._writer.writerow([v if isinstance(v, float) else _cell(v) for v in values])
        else:
            self._buffer.write(json.dumps(row, ensure_ascii=False) + "\n")
        for column in ANSWERS:
            if column in row:
                self.counts[str(row[column]) or "none"] += 1
        self._one_more()

    def leave_out(self, why: str) -> None:
        """An input that could not be read."""
        self.faults.append(why)
        self._one_more()

    def _in_order(self, row: Mapping[str, Any]) -> list[Any]:
        if row.keys() != set(self.columns):
            raise ValueError(f"predictions: a row has the columns {list(row)}, those before it {self.columns}")
        return [row[column] for column in self.columns]

    def _one_more(self) -> None:
        self.done += 1
        if time.perf_counter() > self._sure + EVERY:
            self.flush()

    def keep_picture(self, name: str, picture: Any) -> str:
        """A PNG beside the table, called after its input. Returns its path there."""
        stem = re.sub(r"[^\w.-]+", "_", Path(name).with_suffix("").as_posix())
        home = self.directory / "masks"
        home.mkdir(exist_ok=True)
        place = f"masks/{self.done:06d}_{stem}.png"
        picture.save(self.directory / place)
        return place

    def flush(self) -> None:
        """What is written from here on can be cut off again."""
        self._file.write(self._buffer.getvalue().encode("utf-8", "backslashreplace"))
        self._buffer.seek(0)
        self._buffer.truncate()
        self._file.flush()
        known = {"form": self.form, "done": self.done, "bytes": self._file.tell(), "columns": self.columns}
        write_json(self.directory / PROGRESS, {**known, "faults": self.faults, "counts": dict(self.counts)})
        self._sure = time.perf_counter()

    def finished(self, classes: Sequence[str] = ()) -> Path:
        """The whole table. classes: of boxes, whose numbers COCO's categories are."""
        self.flush()
        self._file.close()
        if self.faults:
            (self.directory / UNREADABLE).write_text("".join(f"{fault}\n" for fault in self.faults))
        if self.form not in CONVERTED:
            return self._path
        rows = [json.loads(line) for line in self._path.read_text().splitlines()]
        path = self._path.with_suffix(CONVERTED[self.form])
        if self.form == "parquet":
            _pyarrow().write_table(_arrow_table(rows), path)
        else:
            write_json(path, as_coco(rows, classes))
        self._path.unlink()
        return path


def as_coco(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Predicted boxes as COCO writes down annotations, each with its score; categories count from 1."""
    numbers = {name: i for i, name in enumerate(classes, start=1)}
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image, row in enumerate(rows, start=1):
        images.append({"id": image, "file_name": next(iter(row.values()))})
        for own in row["boxes"]:
            found = {
                "image_id": image,
                "category_id": numbers[own["class"]],
                "bbox": own["bbox"],
                "score": own["score"],
            }
            boxes.append({"id": len(boxes) + 1, **found, "area": own["bbox"][2] * own["bbox"][3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": boxes, "categories": categories}


def _cell(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return repr(value)
    return harmless(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("format=parquet: needs pyarrow: pip install pyarrow") from None
    return pyarrow.parquet


def _arrow_table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(rows)
