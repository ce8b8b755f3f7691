"""The types that carry the flow. No logic here.

Shapes: B samples in a batch, C channels, H x W pixels, T tokens, V words of a vocabulary, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Features = Any  # whatever one layer group hands to the next: a tensor, or any pytree of them
Seed = int
Summary = Any  # a picture, uint8 [3, H, W]; Markdown; or numbers by name, for a plot


@dataclass(frozen=True, slots=True)
class Batch:
    """One global batch, on the device, as the network sees it. Dimension 0 of every leaf is the sample."""

    inputs: Features  # [B, C, H, W] float, normalised; or Padded token numbers
    targets: Features  # [B] class numbers, or [B, K] after mixup or cutmix; [B, T] of tokens, -100: none; [B, H, W]
    # of pixels, or any pytree; what has a varying number of parts per sample is Ragged
    ids: Tensor  # [B] position of each sample in its split, for reports


class Levels(NamedTuple):
    """Features of several resolutions between groups that a dense task reads from."""

    kept: tuple[Tensor, ...]  # outputs of the groups so far, [B, C, H, W] each, the finest first
    x: Tensor  # what the next group takes


class Padded(NamedTuple):
    """Sequences of several lengths as one tensor, filled up on the right; a pytree, as all features are."""

    values: Tensor  # [B, T] token numbers, or [B, T, D] features of them
    lengths: Tensor  # [B] int64; what lies beyond is neither attended to nor counted
    asked: Tensor  # [B, M] int64 positions that the head answers for, any order; [B, 0]: all


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Numbers that are predicted. Batches hold them standardised: (number - mean) / std, of train."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Spec(Protocol):
    """What every kind of data tells of itself. No names where nothing is classified."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def targets(self) -> TargetSpec | None: ...


@dataclass(frozen=True, slots=True)
class TextSpec:
    """What the network and its head must know of text."""

    vocab_size: int
    max_length: int  # tokens of the longest sequence, special ones included
    special: Mapping[str, int]  # pad, mask, cls, sep, bos, eos, unk -> token number, as far as there are such
    class_names: tuple[str, ...] = ()
    token_bytes: tuple[int, ...] = ()  # [V] of UTF-8 that each token stands for; empty where that is not exact
    pairs: bool = False  # whether a sample is two texts
    targets: TargetSpec | None = None  # numbers that are predicted

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixel - mean) / std, per channel, of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What the network and its head must know of the data."""

    input_shape: tuple[int, int, int]  # (C, H, W) of one sample before a grey image is made three channels
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]
    targets: TargetSpec | None = None  # numbers that are predicted
    boxes: tuple[tuple[float, float], ...] = ()  # (width, height) of some that train has, from the smallest on
    fit: str = "crop"  # how a picture of another shape becomes one of this: crop or letterbox

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True, slots=True)
class BoardSpec:
    """What the network and its head must know of a game."""

    game: str
    input_shape: tuple[int, int, int]  # (C, H, W) of 0 and 1
    class_names: tuple[str, ...]  # its moves
    targets: TargetSpec | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class PositionTargets(NamedTuple):
    """What is known of positions of a game with A moves, from the view of the side to move."""

    policy: Tensor  # [B, A] shares of the moves that should be learned; all 0 where nothing is known
    value: Tensor  # [B, 3] shares of loss, draw and win
    moves: Tensor  # [B, A] int8: what a move leads to, -1, 0 or 1; MOVE_UNKNOWN; MOVE_FORBIDDEN


MOVE_UNKNOWN, MOVE_FORBIDDEN = 2, 3


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """A named module of the network, in execution order; maps features to features."""

    name: str
    module: nn.Module
    names: Mapping[str, str]  # the module's own tensor names -> names in the model they came from


@dataclass(frozen=True)
class Phase:
    """A stretch of steps in which the set of trainable parameters is fixed."""

    first_step: int
    last_step: int  # exclusive
    trainable: frozenset[str]  # parameter names
    cut: int  # first group in which anything may change
    name: str = ""
    lr_scale: float = 1.0  # on every learning rate
    lr: float | None = None  # in place of the optimizer's own rate, where the phase has one
    norm: str = "frozen"  # BatchNorm of frozen groups: frozen, statistics (they move) or affine (its parameters too)
    lr_ratios: Mapping[str, float] = field(default_factory=dict, hash=False)  # parameter -> factor on its own rate
    patience: int | None = None  # evaluations without a better monitor that end it before its last step


@dataclass(frozen=True)
class Backbone:
    """A network without its head, as a model's constructor returns it."""

    source: nn.Module  # the parameters keep the names they have here
    groups: Sequence[tuple[str, nn.Module]]  # in execution order; the last returns what the head takes, such as [B, D]
    head_name: str = "head"  # prefix of the head's parameters in the source model
    head: nn.Module | None = None  # the source's own for the task's question; null: the task builds one
    in_channels: int | None = 3  # None: any
    weights: Callable[[], tuple[str, Mapping[str, Tensor]]] | None = None  # where pretrained tensors come from
    classes: Sequence[str] | None = None  # what the head among these was made for, where that is known
    normalisation: Normalisation | None = None  # of the images that these were trained on, where that is known
    export: Callable[[Path, Mapping[str, Tensor]], None] | None = None  # into a directory, as its library reads it


class FreezeStrategy(Protocol):
    """Pure: the same groups and steps give the same phases. One that changes the network itself has `adapt` too."""

    def phases(self, groups: Sequence[LayerGroup], num_steps: int) -> list[Phase]: ...


class Metrics(Protocol):
    """Accumulates over an evaluation; reads back from the device once, in `compute`.

    over_ranks: take up what the other processes have seen; asked for only where there are several.
    """

    def update(self, outputs: Any, batch: Batch) -> None: ...

    def over_ranks(self, runtime: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def warnings(self) -> Sequence[str]:
        """After `compute`, in words: what whoever reads the numbers should know of them."""
        ...

    def show(self, stream: Any) -> Mapping[str, Summary]:
        """By tag, after `compute`: what somebody would look at. stream: what was evaluated, to show samples of."""
        ...


@dataclass
class LoadReport:
    """What became of every tensor when weights were loaded."""

    source: str
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name -> reason
    initialised: dict[str, str] = field(default_factory=dict)  # name -> reason
    renamed: dict[str, str] = field(default_factory=dict)  # name -> what the source calls it
    trunk_share: float = 1.0  # share of the trunk's elements that were loaded
