"""Weights from anywhere into a network, by name, with a report of what became of each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor

from hydratune.types import LoadReport

PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "network.", "encoder.", "net.")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "ema_state_dict")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A `.safetensors` file, or a plain state dict of tensors saved by torch. Never runs code from the file.

    Raises ValueError where the file holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole .safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a plain state dict of tensors, so it is not read ({type(error).__name__}). "
            "Save it again with safetensors.torch.save_file(model.state_dict(), ...)"
        ) from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors")
    return tensors


def load_into(
    own: Mapping[str, Tensor],
    head: Set[str],
    tensors: Mapping[str, Tensor],
    source: str,
    expected_share: float = 1.0,
) -> LoadReport:
    """Copy into a network's state dict what fits by name; `head` names its head's tensors.

    The head is taken where its shape fits and left as initialised where it does not.

    Raises ValueError where less than `expected_share` of the trunk's elements was found, listing what was not.
    """
    given = _strip_prefix(tensors, own.keys() - head)
    report = LoadReport(source=source)
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in given:
                report.initialised[name] = "not in the source"
            elif given[name].shape != tensor.shape:
                reason = f"shape {list(given[name].shape)} in the source, {list(tensor.shape)} here"
                report.skipped[name] = report.initialised[name] = reason
            elif not given[name].isfinite().all():
                raise ValueError(f"{source}: {name} holds NaN or Inf")
            else:
                tensor.copy_(given[name])
                report.loaded.append(name)
    report.skipped.update(dict.fromkeys(given.keys() - own.keys(), "no such tensor here"))
    # Older state dicts lack BatchNorm's counter of batches, which nothing here reads; torch tolerates that too.
    counted = [n for n in own if n not in head and not n.endswith("num_batches_tracked")]
    trunk = {name: own[name].numel() for name in counted}
    found = sum(trunk.get(name, 0) for name in report.loaded)
    report.trunk_share = found / max(sum(trunk.values()), 1)
    if report.trunk_share < expected_share:
        missing = [f"{n} ({report.initialised[n]})" for n in trunk if n in report.initialised]
        raise ValueError(
            f"init_from={source}: only {report.trunk_share:.1%} of the trunk was found there "
            f"(init_share={expected_share:.0%} is asked). Not matched: {', '.join(missing[:8])}"
            + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            + f". The source begins with: {', '.join(list(given)[:4])}"
        )
    return report


def _strip_prefix(tensors: Mapping[str, Tensor], wanted: Set[str]) -> Mapping[str, Tensor]:
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
