"""Where `init_from` leads: to a run directory, one of its checkpoints, a sweep's winner, or somebody's file."""

from __future__ import annotations

from pathlib import Path

from hydratune.core.paths import MANIFEST, RUN_JSON


def found(wanted: str) -> Path:
    """The path that `init_from` names; best:<sweep directory>, and the file `best` in it, lead to the winner.

    A checkpoint of TensorFlow's is several files, and its name that of none of them: it leads to its index.
    """
    sweep = wanted.removeprefix("best:")
    path = Path(sweep).expanduser() / "best" if sweep != wanted else Path(wanted).expanduser()
    if path.name != "best" or path.is_dir():
        index = path.with_name(f"{path.name}.index") if path.name else path
        return index if not path.exists() and index.is_file() else path
    if not path.is_file():
        raise ValueError(f"init_from={wanted}: no winner yet (hydratune-report {path.parent} says how far it is)")
    return path.parent / path.read_text().strip()


def run_of(wanted: str) -> Path | None:
    """The run directory that `init_from` leads into; None for a file that belongs to no run."""
    path = found(wanted)
    homes = [path, path.parent]
    homes += [home.parent.parent for home in homes if (home / MANIFEST).is_file()]
    return next((home for home in homes if (home / RUN_JSON).is_file()), None)
