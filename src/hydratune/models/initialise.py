"""Initialisation as a pure function of (seed, tensor name).

Constructors draw from the default generator in whatever order they build their layers, so adding a layer changes all
that follow. Here the in-place operations that a constructor performs are recorded per tensor and performed again,
each tensor with a generator of its own. Any model's own scheme (torchvision, timm, transformers) is kept that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hydratune.core.seeding import derive_seed

aten = torch.ops.aten
_RANDOM = {aten.uniform_.default, aten.normal_.default, aten.random_.default, aten.bernoulli_.float}
_OVERWRITE = _RANDOM | {aten.fill_.Scalar, aten.zero_.default, aten.copy_.default}

T = TypeVar("T")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        # storage -> operations; the arguments keep the storages alive, so no address is used twice
        self.operations: dict[int, list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
            key = args[0].untyped_storage().data_ptr()
            whole = args[0].numel() * args[0].element_size() == args[0].untyped_storage().nbytes()
            if func in _OVERWRITE and whole:
                self.operations[key] = []
            if key in self.operations or func in _RANDOM:
                self.operations.setdefault(key, []).append((func, args, kwargs))
        return func(*args, **kwargs)


def initialised(seed: int, construct: Callable[[], T], tensors: Callable[[T], Iterable[tuple[str, Tensor]]]) -> T:
    """`construct()`, with each of `tensors(result)` drawn from a generator seeded by (seed, its name)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(derive_seed(seed, "construct"))
        with _Recorder() as recorder, torch.enable_grad():
            result = construct()
        for name, tensor in tensors(result):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            for func, args, kwargs in recorder.operations.get(tensor.untyped_storage().data_ptr(), ()):
                func(*args, **({**kwargs, "generator": generator} if func in _RANDOM else kwargs))
    return result


def named_tensors(prefix: str = "") -> Callable[[nn.Module], Iterable[tuple[str, Tensor]]]:
    return lambda module: [(f"{prefix}{name}", p) for name, p in module.named_parameters()]
