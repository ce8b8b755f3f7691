"""Values that a configuration takes out of the environment: they are used, and written nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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
        for spelt in {value, json.dumps(value)[1:-1]}:
            text = text.replace(spelt, HIDDEN)
    return text


def hidden_in(node: Any) -> Any:
    """The same for every word of a nested configuration."""
    if not _known:
        return node
    if isinstance(node, Mapping):
        return {k: hidden_in(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [hidden_in(v) for v in node]
    return hidden(node) if isinstance(node, str) else node
