"""Values that a configuration takes out of the environment: they are used, and written nowhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

HIDDEN = "(from the environment)"
SHORTEST = 4  # characters; what is shorter would be found in every second word
# Names whose values tell nothing: ours, the shell's, and those of schedulers and launchers
PLAIN = re.compile(
    r"(HYDRATUNE_|SLURM_|CUDA_|OMP_|XDG_|LC_).*|HOME|USER|LOGNAME|PWD|SHELL|LANG|TERM|TMPDIR|HOSTNAME|PATH|"
    r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_known: set[str] = set()


def learn(values: Iterable[str]) -> None:
    """From now on these are hidden."""
    _known.update(v for v in values if len(v) >= SHORTEST)


def learn_variable(name: str, value: str) -> None:
    if not PLAIN.fullmatch(name):
        learn([value])


def known() -> list[str]:
    return sorted(_known)


def hidden(text: str) -> str:
    """The text without them, as they are or as JSON spells them."""
    for value in sorted(_known, key=len, reverse=True):
        lines = [line for line in value.splitlines() if len(line) >= 2 * SHORTEST]  # of one that is cut
        spellings = {s for part in (value, *lines) for s in (part, json.dumps(part)[1:-1], repr(part)[1:-1])}
        for spelt in sorted(spellings | {json.dumps(s)[1:-1] for s in spellings}, key=len, reverse=True):
            text = text.replace(spelt, HIDDEN)
    return text


def hidden_in(node: Any) -> Any:
    """The same for every word of a nested configuration."""
    return _changed(node, hidden)


def told_apart(node: Any) -> Any:
    """For a fingerprint: hidden, with as much of a digest as tells two values apart and gives neither away."""

    def change(word: str) -> str:
        shown = hidden(word)
        return word if shown == word else f"{shown} {hashlib.sha256(word.encode()).hexdigest()[:4]}"

    return _changed(node, change)


def _changed(node: Any, change: Callable[[str], str]) -> Any:
    if not _known:
        return node
    if isinstance(node, Mapping):
        return {k: _changed(v, change) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_changed(v, change) for v in node]
    return change(node) if isinstance(node, str) else node
