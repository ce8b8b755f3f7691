"""Generated sets for classification and tagging, which need no file: deterministic, and no one word gives them away.

They speak of Python's documentation, so that a network pretrained on that knows the words. Whole numbers from one
generator decide everything, so every machine gets the same sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hydratune.core.seeding import derive_seed
from hydratune.core.task import Task
from hydratune.data.text.labelled import LabelledTexts, TaggedSentences
from hydratune.data.text.tokenizer import TokenizerRecipe

THINGS = (
    "function", "method", "class", "module", "statement", "expression", "object", "string", "list", "dictionary",
    "tuple", "iterator", "generator", "decorator", "exception", "argument", "attribute", "operator", "loop", "block",
)  # fmt: skip
PRAISE = ("clear", "useful", "simple", "correct", "efficient", "readable", "safe", "reliable", "elegant", "complete")
BLAME = (
    "confusing",
    "slow",
    "ambiguous",
    "wrong",
    "obsolete",
    "unsafe",
    "broken",
    "redundant",
    "fragile",
    "incomplete",
)
BEGINNINGS = ("the", "this", "every", "that", "our", "the second", "the new")
HEDGES = ("", "usually ", "in general ", "for most values ", "sometimes ")
LINKS = ("but", "and yet", "although", "even though")
TURNS = ("seemed", "was said to be", "looked", "is often called")

FIRST = ("Ada", "Guido", "Grace", "Barbara", "Dennis", "Florence", "Victoria", "Jordan", "Paris", "Austin", "Chelsea")
LAST = ("Turner", "Hopper", "Liskov", "London", "Lincoln", "Berkeley", "Houston", "Marshall", "Wells", "Bell")
PLACES = ("Paris", "London", "Austin", "Lincoln", "Houston", "Victoria", "Florence", "Berkeley", "Wells", "Marshall")
COMPANIES = ("Turner", "Bell", "Wells", "Jordan", "Victoria", "Marshall", "Chelsea", "Berkeley", "Lincoln", "Hopper")
FORMS = ("{p} wrote the {t} in {l} .", "{o} moved from {l} to {l} .", "In {l} , {p} joined {o} .",
         "{p} of {o} calls the {t} {a} .", "The {t} that {o} gave to {p} is {a} .", "{l} is where {p} met {p} .",
         "After {l} , {o} hired {p} .", "{p} left {o} for {o} .", "Nobody in {l} uses the {t} of {o} .",
         "{o} and {o} share a {t} .", "The {t} is {a} , said {p} .",
         "{p} lives near {l} and works for {o} .")  # fmt: skip


class Dice:
    """Choices out of one generator."""

    def __init__(self, *parts: object) -> None:
        self._generator = torch.Generator().manual_seed(derive_seed("sentences", *parts))

    def below(self, count: int) -> int:
        return int(torch.randint(0, count, (1,), generator=self._generator))

    def one(self, words: Sequence[Any]) -> Any:
        return words[self.below(len(words))]


class GeneratedSentiment(LabelledTexts):
    """Praise or blame of what Python is made of. What counts is the last judgement, and whether it is denied.

    "the loop seemed fragile, but this list is not slow": positive, though it has two words of blame.
    """

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, train: int = 4000, val: int = 1000, test: int = 1000,
        max_length: int = 48, **options: Any,
    ) -> None:  # fmt: skip
        """train, val, test: sentences"""
        super().__init__(task, tokenizer, max_length, **options)
        self.sizes = _checked(train=train, val=val, test=test)

    def rows(self) -> dict[str, list[Any]]:
        def made(dice: Dice, number: int) -> tuple[str, str]:
            return self._sentence(dice, good := bool(number % 2)), "positive" if good else "negative"

        return _rows("sentiment", self.split_seed, self.sizes, made)

    def _sentence(self, dice: Dice, good: bool) -> str:
        denied = bool(dice.below(2))
        judged = dice.one(PRAISE if good != denied else BLAME)
        last = f"{dice.one(BEGINNINGS)} {dice.one(THINGS)} {dice.one(HEDGES)}is {'not ' if denied else ''}{judged}"
        if dice.below(4) == 0:
            return last
        aside = f"{dice.one(BEGINNINGS)} {dice.one(THINGS)} {dice.one(TURNS)} {dice.one(PRAISE + BLAME)}"
        if dice.below(2):
            return f"{aside}, {dice.one(LINKS[:2])} {last}"
        return f"{dice.one(LINKS[2:])} {aside}, {last}"


class GeneratedEntities(TaggedSentences):
    """People, places and companies. Most names are of two kinds or all three: the sentence tells which it is."""

    def __init__(
        self, task: Task, tokenizer: TokenizerRecipe, train: int = 3000, val: int = 600, test: int = 600,
        max_length: int = 48, **options: Any,
    ) -> None:  # fmt: skip
        """train, val, test: sentences"""
        super().__init__(task, tokenizer, max_length, **options)
        self.sizes = _checked(train=train, val=val, test=test)

    def rows(self) -> dict[str, list[Any]]:
        return _rows("entities", self.split_seed, self.sizes, lambda dice, _: self._sentence(dice))

    def _sentence(self, dice: Dice) -> tuple[list[str], list[str]]:
        words: list[str] = []
        tags: list[str] = []
        for slot in dice.one(FORMS).split():
            kind, found = self._filled(dice, slot)
            words += found
            tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(found))]
        return words, tags

    @staticmethod
    def _filled(dice: Dice, slot: str) -> tuple[str, list[str]]:
        if slot == "{p}":
            return "PER", [dice.one(FIRST), dice.one(LAST)] if dice.below(2) else [dice.one(FIRST + LAST)]
        if slot == "{l}":
            return "LOC", ["New", dice.one(PLACES)] if dice.below(4) == 0 else [dice.one(PLACES)]
        if slot == "{o}":
            return "ORG", [dice.one(COMPANIES), "and", dice.one(COMPANIES)] if dice.below(4) == 0 else [
                dice.one(COMPANIES)
            ]
        return "", [dice.one(THINGS) if slot == "{t}" else dice.one(PRAISE + BLAME) if slot == "{a}" else slot]


def _rows(what: str, seed: int, sizes: Mapping[str, int], made: Callable[[Dice, int], Any]) -> dict[str, list[Any]]:
    """made: draws the sample of a number; each split has dice of its own."""
    throws = {name: Dice(what, seed, name) for name in sizes}
    return {name: [made(throws[name], i) for i in range(count)] for name, count in sizes.items()}


def _checked(**sizes: int) -> dict[str, int]:
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"dataset.{key}={value}: must be at least 1")
    return sizes
