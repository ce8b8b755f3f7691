"""A data set's spec as JSON: what a network is given and what it answers, for whoever uses it without the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hydratune.core.types import BoardSpec, ImageSpec, Spec, TargetSpec, TextSpec

KINDS: Mapping[str, type[ImageSpec | TextSpec | BoardSpec]] = {
    "image": ImageSpec, "text": TextSpec, "board": BoardSpec,
}  # fmt: skip


def spec_as_json(spec: Spec) -> dict[str, Any] | None:
    """None for a spec of a user's own making."""
    kind = next((name for name, made in KINDS.items() if type(spec) is made), None)
    if kind is None:
        return None
    left_out = ("token_bytes", "special", "vocab_size")  # which the tokenizer says, and are long
    known = {k: v for k, v in asdict(spec).items() if k not in left_out}  # type: ignore[call-overload]
    return {"kind": kind, **known}


def settings_of(spec: Spec) -> dict[str, Any]:
    """Keys of a data set that make its samples what a network of this spec was trained on."""
    if isinstance(spec, BoardSpec):  # the game says all
        return {}
    found: dict[str, Any] = {"classes": list(spec.class_names)} if spec.class_names else {}
    if isinstance(spec, ImageSpec):
        height, width = spec.input_shape[1:]
        size = height if height == width else [height, width]
        found |= {"size": size, "fit": spec.fit, "mean": list(spec.mean), "std": list(spec.std)}
    if isinstance(spec, TextSpec):
        found["max_length"] = spec.max_length
    return found


def spec_from_json(values: Mapping[str, Any]) -> Spec:
    """Raises ValueError for what no run has written."""
    try:
        made = KINDS[values["kind"]]
        known = {f.name for f in fields(made)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        if (targets := given.get("targets")) is not None:
            given["targets"] = TargetSpec(*(tuple(targets[f.name]) for f in fields(TargetSpec)))
        if "boxes" in given:
            given["boxes"] = tuple((float(w), float(h)) for w, h in given["boxes"])
        if made is TextSpec:
            given = {"vocab_size": 0, "special": {}, **given}
        return made(**given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"run.json: its spec is damaged ({type(error).__name__}: {error})") from None
