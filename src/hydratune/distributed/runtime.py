"""Where and in which numbers a run computes."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from hydratune.distributed.process_group import from_first

PRECISIONS = ("auto", "fp32", "bf16")
LAYOUTS = ("auto", "contiguous", "channels_last")
STRATEGIES = ("replicate", "fsdp")
MOST_THREADS = 1024


@dataclass(frozen=True)
class Precision:
    """The dtype of matrix products and convolutions, and the memory layout of images. Weights stay float32."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        return ("bf16" if self.dtype == torch.bfloat16 else "fp32") + (" channels_last" if self.channels_last else "")

    @staticmethod
    def parse(text: str) -> Precision:
        words = text.split()
        return Precision(torch.bfloat16 if "bf16" in words else torch.float32, "channels_last" in words)


@dataclass(frozen=True)
class Numerics:
    """What a run's last bits depend on beside its configuration: dtype, layout, and how many threads share a sum.

    They belong to a run from its first step on, however often and wherever it goes on.
    """

    precision: Precision
    threads: int

    @staticmethod
    def read(known: Mapping[str, Any]) -> Numerics:
        """Of a checkpoint's state, or of what run.json says of the runtime."""
        return Numerics(Precision.parse(known["precision"]), known.get("threads") or torch.get_num_threads())

    def settings(self) -> dict[str, Any]:
        """As keys of `runtime`."""
        dtype = "bf16" if self.precision.dtype == torch.bfloat16 else "fp32"
        layout = "channels_last" if self.precision.channels_last else "contiguous"
        return {"precision": dtype, "layout": layout, "threads": self.threads}

    def overrides(self, node: str = "runtime") -> str:
        """What to type for the same numbers on any machine of this kind."""
        return " ".join(f"{node}.{key}={value}" for key, value in self.settings().items())


@dataclass(frozen=True)
class Runtime:
    """device: auto, cpu, cuda, cuda:1 ...; precision: auto (probed), fp32 or bf16; layout of images: auto (probed),
    contiguous or channels_last; threads: null leaves torch's own.

    compile: torch.compile, once per phase. keep_memory: let the C allocator of a CPU run keep what it has freed, rather
    than return it to the system and fault it in again at every step (glibc; 8 to 20% of a step's time).
    cache_memory_mb, cache_disk_mb: room for the outputs of frozen trunks (freeze.cache).
    strategy: with several processes each has the whole network (replicate), or a share of every tensor (fsdp).
    `chosen` is what the probe or a checkpoint settled; rank and world are torchrun's.
    """

    device: str = "auto"
    precision: str = "auto"
    layout: str = "auto"
    compile: bool = False
    threads: int | None = None
    keep_memory: bool = True
    cache_memory_mb: int = 2048
    cache_disk_mb: int = 20480
    strategy: str = "replicate"
    chosen: Precision = Precision()
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"runtime.precision={self.precision}: one of {', '.join(PRECISIONS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"runtime.layout={self.layout}: one of {', '.join(LAYOUTS)}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"runtime.strategy={self.strategy}: one of {', '.join(STRATEGIES)}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"runtime.threads={self.threads}: from 1 to {MOST_THREADS}; null takes what there is")
        for key in ("cache_memory_mb", "cache_disk_mb"):
            if getattr(self, key) < 0:
                raise ValueError(f"runtime.{key}={getattr(self, key)}: at least 0, which keeps nothing")
        if self.device != "auto":
            _check_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        if self.world > 1 and torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def start(self) -> None:
        """Settings of the process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.torch_device.type == "cuda":  # convolutions that add in any order would not resume bit for bit
            torch.backends.cudnn.deterministic = True
        if self.keep_memory and self.torch_device.type == "cpu":
            _keep_freed_memory()

    def choose(self, precision: Precision) -> Runtime:
        return replace(self, chosen=precision)

    def computing(self, numerics: Numerics) -> Runtime:
        """With these from now on."""
        torch.set_num_threads(numerics.threads)
        return self.choose(numerics.precision)

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.chosen, torch.get_num_threads())

    def candidates(self, images: bool = True) -> list[Precision]:
        """What the probe may choose from, the plain one first. images: else there is but one layout."""
        dtypes = {"fp32": [torch.float32], "bf16": [torch.bfloat16], "auto": [torch.float32]}[self.precision]
        if self.precision == "auto" and bf16_units(self.torch_device):
            dtypes = [torch.float32, torch.bfloat16]
        layouts = {"contiguous": [False], "channels_last": [True], "auto": [False, True]}[self.layout]
        return [Precision(dtype, layout) for dtype in dtypes for layout in (layouts if images else [False])]

    def autocast(self) -> AbstractContextManager[Any]:
        if self.chosen.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.chosen.dtype)

    # ---- several processes; nothing to do for one

    def sum_over_ranks(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each by its sum over all ranks."""
        if self.world > 1 and tensors:
            from torch import distributed

            # One message for all: what trains may change between phases, so nothing is wrapped or registered.
            flat = torch.cat([t.reshape(-1) for t in tensors])
            distributed.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, of which each may have another number, in the order of ranks."""
        if self.world == 1:
            return rows
        from torch import distributed

        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.world)]
        distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        sizes = [int(c) for c in counts]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def agreed(self, number: int | None) -> int | None:
        """The largest number that a rank has; None where all have None."""
        if self.world == 1:
            return number
        from torch import distributed

        seen = torch.tensor(-1 if number is None else number)  # on the CPU, whatever the device
        distributed.all_reduce(seen, distributed.ReduceOp.MAX)
        return None if int(seen) < 0 else int(seen)

    def first_says(self, text: str) -> str:
        """What rank 0 has."""
        return from_first(text) if self.world > 1 else text

    def wait_for_all(self) -> None:
        if self.world > 1:
            from torch import distributed

            distributed.barrier()

    @property
    def shares(self) -> bool:
        """Whether no rank has the whole network."""
        return self.world > 1 and self.strategy == "fsdp"

    def sharded(self, modules: Sequence[torch.nn.Module]) -> None:
        """With strategy=fsdp each rank keeps a share of every parameter of these from now on (FSDP2)."""
        if self.shares:
            from torch.distributed.fsdp import fully_shard
            from torch.distributed.tensor import init_device_mesh

            mesh = init_device_mesh(self.torch_device.type, (self.world,))
            for module in modules:
                if any(True for _ in module.parameters()):
                    fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def synchronize(self) -> None:
        """Wait for the device; for clocks."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize()

    def seed_noise(self, seed: int) -> None:
        """Dropout and other noise draw from the device's default generator."""
        device = self.torch_device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def describe(self) -> dict[str, Any]:
        """For run.json; `repeat` is what to type for the same numbers elsewhere."""
        device = self.torch_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        seen = {"device": str(device), "name": name, "threads": torch.get_num_threads(), "precision": str(self.chosen)}
        return {**seen, "repeat": self.numerics.overrides()}


def _check_device(device: str) -> None:
    """Raises ValueError for one that torch does not know, or that is not here."""
    try:
        named = torch.device(device)
    except RuntimeError:
        named = None
    if named is not None and named.type == "mps" and torch.backends.mps.is_available():
        return
    if named is None or named.type not in ("cpu", "cuda"):
        raise ValueError(f"runtime.device={device}: auto, cpu, cuda or cuda:1")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        seen = f"{count} CUDA device{'s' * (count > 1)}" if count else "no CUDA device"
        raise ValueError(f"runtime.device={device}: torch sees {seen} here; auto takes what there is")


def _keep_freed_memory() -> None:
    """glibc maps every block above 128 KiB afresh and unmaps it when freed: a page fault per 4 KiB, every step."""
    import ctypes

    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = cpu_features()
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def cpu_features() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features"))]
        return set(lines[0].split(":")[1].split()) if lines else set()
    except OSError:
        return set()


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        if names:
            return f"{names[0]} ({os.cpu_count()} cores)"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
