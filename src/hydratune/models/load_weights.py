"""Weights from anywhere into a network, by name, with a report of what became of each tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydratune.core.types import LoadReport

PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "network.", "encoder.", "net.")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "network", "ema_state_dict")
NOT_WEIGHTS = ("optim", "sched", "scaler")  # in the names of what a training leaves beside them
DEEPEST = 4
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class HeadAnswers:
    """What the outputs of a head stand for. kind: the task's; None where that is not known (older checkpoints)."""

    kind: str | None
    names: Sequence[str]

    @property
    def called(self) -> str:
        return "targets" if self.kind == "values" else "classes"


@dataclass(frozen=True)
class InitRules:
    """How weights are taken over: the keys `init_*`.

    share: the least of the trunk that must be found; unused: the most that may be left over, of what lies in the parts
    of the source that are taken from. head: "auto" takes it where it is known to be for the same classes. key: which
    state dict of a file with several; prefix: only names that begin so, without it; names: there -> here.
    """

    share: float = 1.0
    unused: float = 0.2
    head: bool | str = "auto"
    key: str | None = None
    prefix: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, tensors: Tensors) -> dict[str, Tensor]:
        """Raises ValueError for a prefix or a name that is not there."""
        prefix = self.prefix or ""
        result = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if not result:
            raise ValueError(f"init_prefix={prefix}: no name there begins so. It begins with: {_some(list(tensors))}")
        for there, here in self.names.items():
            if not any(n == there or n.startswith(f"{there}.") for n in result):
                raise ValueError(f"init_map: {there} is not there. Names there: {_some(list(result))}")
            result = {_moved(n, there, here): t for n, t in result.items()}
        return result

    def refuses_head(self, theirs: HeadAnswers | None, own: HeadAnswers) -> str | None:
        """Why a head that gives their answers is not taken for ours; None where it is."""
        if self.head is False:
            return "init_head=false"
        if self.head is True or (theirs is None and not own.names):
            return None
        if theirs is None:
            return f"nothing says which {own.called} it was made for; init_head=true takes it"
        if theirs.kind is not None and theirs.kind != own.kind:
            return f"made for another target ({theirs.kind}, and this task asks for {own.kind})"
        if list(theirs.names) == list(own.names):
            return None
        if sorted(theirs.names) == sorted(own.names):
            return (
                f"made for the same {own.called} in another order; dataset.classes=[{','.join(theirs.names)}] takes it"
            )
        return f"made for other {own.called}"


def _moved(name: str, there: str, here: str) -> str:
    return here + name.removeprefix(there) if name == there or name.startswith(f"{there}.") else name


def read_tensors(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """A `.safetensors` file, or a plain state dict of tensors saved by torch. Never runs code from the file.

    Raises ValueError where the file holds anything but tensors.
    """
    return read_state_dict(path, key)[0]


def read_state_dict(path: str | Path, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """(the same, words on which of several state dicts it is)."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), ""
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole .safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a plain state dict of tensors, so it is not read ({type(error).__name__}). "
            "Save it again with safetensors.torch.save_file(model.state_dict(), ...)"
        ) from None
    found = dict(_state_dicts(content, ()))
    if not found:
        raise ValueError(f"{path} holds no named tensors")
    chosen = _chosen(found, path, key)
    others = [".".join(k) for k in found if k and k != chosen]
    message = f"its {'.'.join(chosen)}" if chosen else ""
    return found[chosen], message + (f"; init_key={others[0]} would take another of what it holds" if others else "")


def _state_dicts(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping within that has tensors by name, the outermost first."""
    if not isinstance(content, Mapping):
        return
    named = {k: v for k, v in content.items() if isinstance(k, str)}
    if tensors := {k: v for k, v in named.items() if isinstance(v, Tensor)}:
        yield path, tensors
    for key, inner in named.items() if len(path) < DEEPEST else ():
        if not any(word in key.lower() for word in NOT_WEIGHTS):
            yield from _state_dicts(inner, (*path, key))


def _chosen(found: Mapping[tuple[str, ...], Tensors], path: Path, key: str | None) -> tuple[str, ...]:
    """The one asked for; else the only one, or the one that lies under nothing but the usual wrappers' names."""
    names = {".".join(k): k for k in found}
    if key is not None:
        fitting = [k for n, k in names.items() if n == key or n.startswith(f"{key}.")]
        if not fitting:
            raise ValueError(
                f"init_key={key}: {path} holds no such state dict; it has {', '.join(filter(None, names))}"
            )
        return max(fitting, key=lambda k: len(found[k]))
    most = max(map(len, found.values()))
    large = [k for k in found if 10 * len(found[k]) >= most]  # not a counter that lies beside them
    usual = [k for k in large if all(word in WRAPPERS for word in k)]
    if len(large) == 1:
        return large[0]
    if not usual:
        raise ValueError(f"{path} holds several state dicts: init_key= one of {', '.join('.'.join(k) for k in large)}")
    return min(usual, key=lambda k: [WRAPPERS.index(word) for word in k])


def load_into(
    own: Tensors, head: Set[str], tensors: Tensors, source: str, rules: InitRules | None = None,
    refused: str | None = None,
) -> LoadReport:  # fmt: skip
    """Copy into a network's state dict what fits by name; `head` names its head's tensors.

    The head is taken where its shape fits, unless it is `refused`, and left as initialised elsewhere. One that is there
    under another name is known by its place and its shape.

    Raises ValueError where less than rules.share of the trunk's elements was found, listing what was not; where more
    than rules.unused of what lies beside them was not wanted; and for tensors of other numbers.
    """
    rules = rules or InitRules()
    given = dict(_strip_prefix(rules.renamed(tensors), own.keys() - head))
    report = LoadReport(source=source)
    elsewhere = _head_elsewhere(own, head, given)
    for name, there in elsewhere.items():
        given[name] = given.pop(there)
        report.renamed[name] = there
    for name in head & given.keys() if refused else ():
        there = f"there as {report.renamed.pop(name)}: " if name in report.renamed else ""
        report.skipped[name] = report.initialised[name] = there + (refused or "")
        del given[name]
    with torch.no_grad():
        for name, tensor in own.items():
            if name in report.initialised:
                continue
            if why := _unfit(given.get(name), tensor, name, source):
                report.initialised[name] = why
                if name in given:
                    report.skipped[name] = why
            else:
                tensor.copy_(given[name])
                report.loaded.append(name)
    report.skipped.update(dict.fromkeys(given.keys() - own.keys(), "no such tensor here"))
    if rules.head is True and (lost := sorted(head & report.initialised.keys())):
        raise ValueError(f"init_head=true: {lost[0]} of {source} cannot be taken ({report.initialised[lost[0]]})")
    _judge_found(own, head, given, report, rules.share)
    _judge_unused(head, given, report, rules.unused)
    return report


def _unfit(given: Tensor | None, own: Tensor, name: str, source: str) -> str | None:
    """Why it is not taken; None where it is."""
    if given is None:
        return "not in the source"
    if given.shape != own.shape:
        return f"shape {list(given.shape)} in the source, {list(own.shape)} here"
    if given.is_floating_point() != own.is_floating_point():
        kinds = f"{name} holds {given.dtype} where {own.dtype} is wanted".replace("torch.", "")
        raise ValueError(f"{source}: {kinds}; quantized weights are not read: save them as floats")
    if not given.isfinite().all():
        raise ValueError(f"{source}: {name} holds NaN or Inf")
    return None


def _head_elsewhere(own: Tensors, head: Set[str], given: Tensors) -> dict[str, str]:
    """The head's tensors -> what they are called in the source, where it has one layer of just these shapes, and that
    under a name that is not known here.
    """
    layers = {name.rpartition(".")[0] for name in head}
    if len(layers) != 1 or head & given.keys() or not (own.keys() - head) & given.keys():
        return {}
    shapes = {name.rpartition(".")[2]: own[name].shape for name in head}
    others = {name.rpartition(".")[0] for name in given.keys() - own.keys()}
    alike = [
        layer for layer in others
        if all(f"{layer}.{part}" in given and given[f"{layer}.{part}"].shape == shape for part, shape in shapes.items())
    ]  # fmt: skip
    return {name: f"{alike[0]}.{name.rpartition('.')[2]}" for name in head} if len(alike) == 1 else {}


def _judge_found(own: Tensors, head: Set[str], given: Tensors, report: LoadReport, expected: float) -> None:
    # Older state dicts lack BatchNorm's counter of batches, which nothing here reads; torch tolerates that too.
    counted = [n for n in own if n not in head and not n.endswith("num_batches_tracked")]
    trunk = {name: own[name].numel() for name in counted}
    found = sum(trunk.get(name, 0) for name in report.loaded)
    report.trunk_share = found / max(sum(trunk.values()), 1)
    if report.trunk_share < expected:
        missing = [f"{n} ({report.initialised[n]})" for n in trunk if n in report.initialised]
        raise ValueError(
            f"init_from={report.source}: only {_percent(report.trunk_share)} of the trunk was found there "
            f"(init_share={expected:.0%} is asked). Not matched: {_some(missing)}. "
            f"The source begins with: {', '.join(list(given)[:4])}"
        )


def _judge_unused(head: Set[str], given: Tensors, report: LoadReport, most: float) -> None:
    """A deeper network's weights fill a shallower one; what is left over of the same parts tells."""
    taken = {name.partition(".")[0] for name in report.loaded if name not in head}
    judged = {n: t.numel() for n, t in given.items() if n.partition(".")[0] in taken}
    left = {n: size for n, size in judged.items() if report.skipped.get(n) == "no such tensor here"}
    share = sum(left.values()) / max(sum(judged.values()), 1)
    if share > most:
        raise ValueError(
            f"init_from={report.source}: {_percent(share)} of what it has in {', '.join(sorted(taken)[:4])} finds no "
            f"place here ({_some(list(left))}), so it is another model's; init_unused={math.ceil(share * 100) / 100} "
            "takes the rest of it all the same"
        )


def _percent(share: float) -> str:
    """Rounded down: what is not all is not 100%."""
    return f"{math.floor(share * 1000) / 10:.1f}%"


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _strip_prefix(tensors: Tensors, wanted: Set[str]) -> Tensors:
    """Without the wrappers' prefixes (up to three, one inside another) that make the most names match."""
    found = [tensors]
    newest = [tensors]
    for _ in range(3):
        newest = [
            {k.removeprefix(p): v for k, v in known.items()}
            for known in newest
            for p in PREFIXES
            if any(k.startswith(p) for k in known)
        ]
        found += newest
    return max(found, key=lambda candidate: len(wanted & candidate.keys()))
