"""The layers of a Keras file, whichever of Keras' three ways it has to call them.

.h5            model_weights/stem_conv/stem_conv/kernel:0    names, twice; models within a model lie one deeper
.weights.h5    layers/conv2d_3/vars/0                        numbers per class; newer files say the name as well
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from hydratune.models.keras.applications import BATCH_NORM, CONV, DENSE, DEPTHWISE, LAYER_NORM, SCALE, known_layers

Tensors = Mapping[str, Tensor]
OPTIMIZER = re.compile(r"(?:.*/)?(?:optimizer|optimizer_weights|top_level_model_weights)/")
VARS = re.compile(r"(.*?)((?:sequential(?:_\d+)?/layers/)?)(\w+?)(?:_(\d+))?/vars/(\d+)")
NORMALIZATION = "normalization"
VARIABLES = {
    CONV: ("kernel", "bias"), DEPTHWISE: ("kernel", "bias"), DENSE: ("kernel", "bias"), LAYER_NORM: ("gamma", "beta"),
    SCALE: ("gamma",), BATCH_NORM: ("gamma", "beta", "moving_mean", "moving_variance"),
    NORMALIZATION: ("mean", "variance", "count"),
}  # fmt: skip


class Variable(NamedTuple):
    path: str  # in the file
    tensor: Tensor


Layers = dict[str, dict[str, Variable]]


def canonical(name: str) -> str:
    """One spelling of what releases of Keras spell in several ways."""
    name = name.replace("/", "_").lower().replace("batchnorm", "bn")
    name = re.sub(r"^convnext\w*?_(?=stem_|stage_|downsampling_|head_)", "", name)
    return "predictions" if name == "fc1000" else name


def named_layers(tensors: Tensors, names: Mapping[str, str]) -> tuple[Layers, dict[str, str]]:
    """(by canonical name, as far as the file says names; what no application has keeps its own. Of layers that are
    there twice, in words where). names: of the file's groups.
    """
    found: Layers = {}
    twice: dict[str, str] = {}
    for path, tensor in tensors.items():
        if OPTIMIZER.match(path):
            continue
        counted = VARS.fullmatch(path)
        if counted is not None:
            group = path.rpartition("/")[0]
            name = names.get(group) or names.get(group.removesuffix("/vars")) or group.removesuffix("/vars")
            layer, variable = _canonical_or(name), _numbered(counted, tensors)
        else:
            parts = path.removeprefix("model_weights/").split("/")
            layer, variable = _layer(parts[:-1]), _variable(parts[-1])
        own = found.setdefault(layer, {})
        if variable in own:
            twice[layer] = f"{own[variable].path} and {path}"
        own[variable] = Variable(path, tensor)
    return found, twice


def counted_layers(tensors: Tensors) -> Iterator[Layers]:
    """By their kind and number, `conv2d/12`, and those in a Sequential, `0/conv2d/0`: once for each model in the file.
    What lies outside of it goes by its path.
    """
    prefixes = {m[1] for path in tensors if (m := VARS.fullmatch(path)) and not OPTIMIZER.match(path)}
    for prefix in sorted(prefixes):
        found: Layers = {}
        for path, tensor in tensors.items():
            m = VARS.fullmatch(path)
            if m is None or OPTIMIZER.match(path):
                continue
            inside = re.match(r"sequential(?:_(\d+))?/", m[2])
            where = f"{inside[1] or 0}/" if inside else ""
            key = f"{where}{m[3]}/{m[4] or 0}" if m[1] == prefix else path.rpartition("/vars/")[0]
            found.setdefault(key, {})[_numbered(m, tensors)] = Variable(path, tensor)
        yield found


def _numbered(m: re.Match[str], tensors: Tensors) -> str:
    """What the number of a variable stands for. A BatchNorm without a scale begins with its shift."""
    known, number = VARIABLES.get(m[3], ()), int(m[5])
    if m[3] == BATCH_NORM and f"{m[0].rpartition('/')[0]}/3" not in tensors:
        number += 1
    return known[number] if number < len(known) else m[5]


def _variable(name: str) -> str:
    name = name.partition(":")[0].removeprefix("depthwise_")
    return "gamma" if re.fullmatch(r"[Vv]ariable(_\d+)?", name) else name


def _layer(parts: list[str]) -> str:
    """The longest end of a path that is a layer of some application; that of its group, else."""
    for i in range(len(parts)):
        name = canonical("_".join(parts[i:]))
        if name in known_layers() or re.fullmatch(rf"{NORMALIZATION}(_\d+)?", name):
            return name
    if not parts:
        return ""
    group, inner = parts[0], parts[-1]
    if re.fullmatch(re.escape(group) + r"_\d+", inner):  # the graph had one of that name already
        return _canonical_or(group)
    half = len(parts) // 2
    return "/".join(parts[:half] if parts[:half] == parts[half:] else parts)


def _canonical_or(name: str) -> str:
    known = canonical(name)
    return known if known in known_layers() else name
