"""Values that a configuration takes out of the environment: they are used, and written nowhere."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

REFERENCE = "\0"  # round the name of a variable; no value of the environment can hold it
HIDDEN = "(from the environment)"
SHORTEST = 4  # characters; what is shorter is found in every second word, and hidden only where it is all that is said
TELLING = 8  # of a part of a value, or of what else it may be called
# Variables whose values tell nothing: ours, the shell's, and those of schedulers and launchers
PLAIN = frozenset(
    """
    HYDRATUNE_DATA HYDRATUNE_CACHE HOME USER LOGNAME PWD OLDPWD SHELL LANG LANGUAGE LC_ALL TERM PATH HOSTNAME
    TMPDIR TMP TEMP SCRATCH WORK XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES OMP_NUM_THREADS
    SLURM_JOB_ID SLURM_JOBID SLURM_JOB_NAME SLURM_JOB_PARTITION SLURM_JOB_NODELIST SLURM_NODELIST SLURM_NODEID
    SLURM_NNODES SLURM_NTASKS SLURM_PROCID SLURM_LOCALID SLURM_CPUS_PER_TASK SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
    SLURM_SUBMIT_DIR SLURM_TMPDIR SLURM_CLUSTER_NAME
    """.split()  # noqa: SIM905
)
# Which tell nothing either: our own, by which a run directory is read again
WORDS = re.compile("true|false|null|none|auto|pretrain|finetune|complete|running|paused|stopped|failed|accuracy|loss")
_known: set[str] = set()
_short: set[str] = set()
_pattern: re.Pattern[str] | None = None
_names: dict[str, str] = {}  # value -> the variable that has it


def learn(values: Iterable[str]) -> None:
    """From now on these are hidden."""
    global _pattern
    new = {v for v in values if not WORDS.fullmatch(v.lower())} - _known
    if not new:
        return
    _known.update(new)
    _short.update(v for v in new if 1 < len(v) < SHORTEST and not v.replace(".", "").isdigit())
    forms = {form for value in _known for form in _forms(value)}
    spelt = [_spelt(form) for form in sorted(forms, key=len, reverse=True)]
    _pattern = re.compile("|".join(spelt)) if spelt else None


def learn_variable(name: str, value: str) -> None:
    if name not in PLAIN:
        _names[value] = name
        learn([value])


def known() -> list[str]:
    return sorted(_known)


def hidden(text: str) -> str:
    """The text without them, however they are spelt in it."""
    return _pattern.sub(HIDDEN, text) if _pattern is not None else text


def hidden_in(node: Any) -> Any:
    """The same for every word of a nested configuration, and for those that are short and all that is said."""
    return _changed(node, lambda word: HIDDEN if word in _short else hidden(word))


def told_apart(node: Any) -> Any:
    """For a fingerprint: hidden, with as much of a digest as tells two values apart and gives neither away."""

    def change(word: str) -> str:
        shown, digest = hidden_in(word), hashlib.sha256(word.encode("utf-8", "surrogateescape")).hexdigest()
        return word if shown == word else f"{shown} {digest[: 2 if word in _short else 4]}"

    return _changed(node, change)


def as_references(node: Any) -> Any:
    """Variables instead of their values, for a file that another process reads, perhaps on another machine."""

    def change(word: str) -> str:
        for value in sorted(_names, key=len, reverse=True):
            word = word.replace(value, f"{REFERENCE}{_names[value]}{REFERENCE}") if value else word
        return word

    return _changed(node, change)


def from_references(node: Any) -> Any:
    """The values that these variables have here. Raises ValueError for one that is not set."""

    def change(word: str) -> str:
        parts = word.split(REFERENCE)
        for i in range(1, len(parts), 2):
            if parts[i] not in os.environ:
                raise ValueError(f"the environment variable {parts[i]}, which this job uses, is not set here")
            learn_variable(parts[i], os.environ[parts[i]])
            parts[i] = os.environ[parts[i]]
        return "".join(parts)

    return _mapped(node, change)


def hide_in_file(path: Path) -> None:
    """What another one has written."""
    if path.is_file() and (text := path.read_text()) != (shown := hidden(text)):
        path.write_text(shown)


class HidingStream:
    """What is printed to it by whomever goes on without them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hidden(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _changed(node: Any, change: Callable[[str], str]) -> Any:
    return _mapped(node, change) if _known else node


def _mapped(node: Any, change: Callable[[str], str]) -> Any:
    if isinstance(node, Mapping):
        return {k: _mapped(v, change) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_mapped(v, change) for v in node]
    return change(node) if isinstance(node, str) else node


# ---- what a value may be called, and how that may be written


def _forms(value: str) -> Iterator[str]:
    """The value, and what programs make of it: lines of it, a path's other forms, parts of a URL, words of a list."""
    if len(value) < SHORTEST:
        return
    yield value
    parts = [*value.splitlines(), unquote(value)]
    if "://" in value:
        entry, others = _parts_of_url(value)
        yield from (part for part in entry if len(part) >= SHORTEST)
        parts += others
    elif "/" in value or value.startswith("~"):
        parts += _paths(value)
    elif value[0] in "[{":
        parts += re.split(r"[\s\[\]{},:'\"]+", value)
    yield from (part for part in parts if len(part) >= TELLING)


def _paths(value: str) -> set[str]:
    """As it is from here, from the root, and behind links; not what all paths begin with."""
    try:
        here, path = os.getcwd(), os.path.expanduser(value)
        whole = {os.path.abspath(path), os.path.realpath(path)}
    except (OSError, ValueError):  # no directory any more, or no path
        return set()
    beneath = {os.path.relpath(p, here) for p in whole if p.startswith(f"{here}/")}
    common = {here, os.path.expanduser("~"), *(here[:i] for i, letter in enumerate(here) if letter == "/")}
    return (whole | beneath | {path, os.path.normpath(path), value.rstrip("/")}) - common


def _parts_of_url(value: str) -> tuple[list[str], list[str]]:
    """(what lets somebody in, what a library may say of the rest)"""
    try:
        url = urlsplit(value)
        password, login = url.password or "", url.netloc.rpartition("@")[0]
    except ValueError:  # of an IPv6 address that is none
        return [], []
    asked = [pair.partition("=")[2] for pair in url.query.split("&")]
    rest = [f"{url.path}?{url.query}" if url.query else url.path, url.fragment, *asked]
    return [login, password, unquote(password)], [*rest, *map(unquote, rest)]


def _spelt(value: str) -> str:
    """A pattern of the value as JSON, YAML, CSV, a shell, a URL, HTML or Markdown writes it, as a path or as a name."""
    pattern, runs = "", re.findall(r"((?:/(?:\.?/)*|[^\w.=,-])+)|([\w.=,-]+)", value, re.ASCII)
    name = len(value) >= TELLING and sum(bool(word) for _, word in runs) > 1  # in one, other signs are a dash or none
    for i, (strange, word) in enumerate(runs):
        if word:
            pattern += re.sub(r"[=,]", lambda found: f"(?:{found[0]}|{_encoded(found[0])})", re.escape(word))
            continue
        signs = "".join(_spelt_sign(found[0]) for found in re.finditer(SIGN, strange, re.DOTALL))
        dash = r"|[_-]+(?:\.[_-]+)*" if name else ""
        pattern += f"(?:{signs}{dash})" + ("?" if name and i in (0, len(runs) - 1) else "")
    # a case that changes, as that of a host's name, makes no other value of one that is long
    return f"(?i:{pattern})" if len(value) >= TELLING else f"(?:{pattern})"


SIGN = r"/(?:\.?/)*|\s+|."  # slashes that are one, spaces that may be one, any other
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': '&quot;|""', "'": "''|'\"'\"'"}


def _spelt_sign(sign: str) -> str:
    if sign[0] == "/":
        slash = rf"(?:\\*/|{_encoded('/')})"
        return rf"{slash}+(?:\.{slash}+)*"
    if sign.isspace():
        return r"(?:\s|\\[nrt ]?|%(?:25)*[02][0-9A-Fa-f]|[+_-]|&#\d+;)+"
    plain = r"\\+" if sign == "\\" else rf"\\*{re.escape(sign)}"
    other = re.escape(unicodedata.normalize("NFD", sign))
    return rf"(?:\\*(?:{ENTITIES.get(sign, other)}|{other}|{_encoded(sign)})|{plain})"


def _encoded(sign: str) -> str:
    """By its number, in a URL, a string of some language, or HTML."""
    code = ord(sign)
    octets = sign.encode("utf-8", "surrogateescape")
    units = [code] if code < 0x10000 else [0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code & 0x3FF)]
    ways = ["".join(rf"%(?:25)*{octet:02x}" for octet in octets), "".join(rf"\\+u{unit:04x}" for unit in units)]
    ways += ["".join(rf"\\+x{octet:02x}" for octet in octets), rf"\\+x{code:02x}", rf"\\+U{code:08x}"]
    return f"(?i:{'|'.join([*ways, rf'&#0*{code};', rf'&#x0*{code:x};'])})"
