"""What a user reads when something goes wrong: a sentence for whatever can be foreseen, and for the rest where its
traceback is kept.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydratune.config.groups import COMPONENTS
from hydratune.core.secrets import hidden

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of the system, about a path that somebody chose
PATHS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.EEXIST, errno.ELOOP, errno.ENOTEMPTY, errno.EIO, errno.ESTALE,
)  # fmt: skip
# Hydra's plugins that hydratune has as extras: option -> extra
PLUGINS = {
    "hydra/sweeper": {"optuna": "optuna"},
    "hydra/launcher": {"submitit_slurm": "submitit", "submitit_local": "submitit", "joblib": "joblib", "ray": "ray"},
}
TRACEBACK = "traceback.txt"


def disk_is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in FULL_DISK


def explain(error: BaseException, arguments: Sequence[str]) -> str | None:
    """What the user should know; None for what is not foreseen."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    foreign = next((e for e in chain if type(e).__module__.partition(".")[0] in ("hydra", "omegaconf")), None)
    if foreign is not None:
        return _hydra(chain, arguments)
    own = chain[0]
    if type(own) is ValueError or type(own).__name__ in ("NonFinite", "JobFailed", "NotSaved"):
        return str(own)
    if type(own).__module__.partition(".")[0] == "yaml":
        return _yaml(own)
    if isinstance(own, UnicodeError):
        return f"a name or a value that is not UTF-8 ({own})"
    if disk_is_full(own):
        return f"{own}; what was saved before is as it was, and resume goes on from there"
    if isinstance(own, OSError) and own.errno in PATHS and own.filename is not None:
        return f"{own.filename}: {own.strerror}; outputs, name and dataset.root say where files are written and read"
    if isinstance(own, RuntimeError | MemoryError) and ("out of memory" in str(own) or isinstance(own, MemoryError)):
        message = (str(own).splitlines() or ["out of memory"])[0]
        return f"{message}; a smaller batch_size, or engine.accumulate=2, needs less"
    return None


def unforeseen(error: BaseException, trusted: Sequence[str], run: str | None) -> str:
    """Whose fault it is, and where its traceback is kept: in the run's directory if there is one."""
    home = Path(run) if run and run != "." and Path(run).is_dir() else Path(tempfile.mkdtemp(prefix="hydratune-"))
    whole = hidden("".join(traceback.format_exception(error)))
    kept = f"its traceback is in {home / TRACEBACK}"
    try:
        (home / TRACEBACK).write_text(whole, encoding="utf-8", errors="backslashreplace")
    except OSError:
        kept = f"its traceback:\n{whole}"
    message = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = next((f for f in reversed(frames) if _package(f.filename, trusted)), None)
    if theirs is not None:
        return f"{message} (in {os.path.relpath(theirs.filename)} line {theirs.lineno}); {kept}"
    return f"this is a fault of hydratune: {message}; {kept}. Please report it with that file and the command"


def _package(file: str, packages: Sequence[str]) -> bool:
    """Whether a source file belongs to one of these packages."""
    path = Path(file)
    return path.stem in packages or any(part in packages for part in path.parts)


def _yaml(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name} line {mark.line + 1}: " if mark is not None else ""
    return f"{where}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def _hydra(chain: Sequence[BaseException], arguments: Sequence[str]) -> str:
    """Hydra's and OmegaConf's messages, with the key, the value and the nearest right name."""
    text = "\n".join(str(e) for e in chain)
    typed = next((a for a in arguments if re.search(rf"'{re.escape(a.lstrip('+~').partition('=')[0])}'", text)), None)
    if found := re.search(
        r"Could not find '([\w/@.]+)/([^'/]+)'\s+Available options in '([^']+)':\s*((?:\s*\S+\n?)+)", text
    ):
        group, option, _, listed = found.groups()
        for plugins, extras in PLUGINS.items():
            if (group == plugins and option in extras) or group.startswith(f"{plugins}/"):
                named = option if group == plugins else "optuna"
                return f"{plugins}={named}: pip install 'hydratune[{extras[named]}]' brings it"
        options = [o for o in re.findall(r"^\s*([\w.-]+)\s*$", listed, re.M) if not o.startswith("_")]
        resumed = any(a.startswith("resume=") for a in arguments)
        hint = "; a run that was started with --config-dir is resumed with it too" if resumed else ""
        return f"{group}={option}: no such option; {_near(option, options)}{hint}"
    if found := re.search(r"Could not override '([^']+)'\.? ?(?:\s*No match in the defaults list)", text):
        key = found.group(1)
        return f"{typed or key}: no such key; {_near(key, _known_keys())}"
    if "Missing mandatory value" in text:
        missing = re.search(r"full_key: ([\w.]+)", text) or re.search(r"Missing mandatory value: ([\w.]+)", text)
        key = missing.group(1) if missing else "a value"
        return f"{key} is not given; add {key}=..."
    if found := re.search(r"full_key: ([\w.\[\]@]+)", text):
        key = found.group(1)
        if "not in struct" in text or "Could not override" in text:
            return f"{typed or key}: no such key; {_near(key, _known_keys(arguments))}"
        first = next(str(e) for e in reversed(chain)).splitlines()[0]
        return f"{typed or key}: {first}"
    lines = [line.strip() for line in str(chain[0]).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _near(word: str, known: Sequence[str]) -> str:
    tail = word.rpartition(".")[2]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [k for k in known if k.rpartition(".")[2] == tail][:1]
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    if near:
        return f"nearest: {near[0]}"
    return f"known: {', '.join(known[:12])}" if known else "see --help"


def _known_keys(arguments: Sequence[str] = ()) -> list[str]:
    """Every key of the configuration that the command line's group choices compose."""
    from hydratune.config.compose import known_keys

    groups = "|".join((*COMPONENTS, "stage"))
    return known_keys([a for a in arguments if re.fullmatch(rf"({groups})=[\w]+", a)])
