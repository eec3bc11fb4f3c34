"""What a sweep tries: ranges and lists of a command line, and the settings drawn from them. Nothing runs here."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pcls.config import Recipe
from pcls.config.duration import Duration, round_half_up
from pcls.config.fields import Section
from pcls.config.load import described_field, load_recipe, with_overrides
from pcls.errors import UserError

Strategy = Literal["random", "grid", "halving"]

SEED = "train.seed"
# More are no plan, and would be held in memory.
MAX_VALUES = 10_000
# Settings that are drawn where nobody says how many.
DRAWN = 10
# Successive halving keeps one setting in so many, each of which then trains so many times as long.
KEPT = 3
DIGITS = 4


@dataclass(frozen=True)
class Choices:
    """Values of a key, as a command line has them."""

    values: tuple[str, ...]

    def draw(self, rng: np.random.Generator) -> str:
        """One of them, all equally probable."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Span:
    """A range of numbers.

    Attributes:
      low, high: its ends.
      log: equally probable are equal ratios, not equal distances.
      whole: whole numbers only.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, rng: np.random.Generator) -> str:
        """A number of it, with few digits, so that the best can be typed."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        if self.whole:
            return str(min(max(round_half_up(value), int(self.low)), int(self.high)))
        return f"{value:.{DIGITS}g}"


@dataclass(frozen=True)
class Space:
    """What stays and what is tried.

    Attributes:
      fixed: overrides of every trial.
      swept: keys with what they may be, in the order of the command line; without the seed.
      seeds: with each of which every setting is trained; empty: that of the recipe.
    """

    fixed: tuple[str, ...]
    swept: dict[str, Choices | Span]
    seeds: tuple[str, ...]


# Key and value, in the order of the space.
Setting = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: of its folder within the sweep's.
      number: of its setting.
      seed: of the run; empty: the recipe's.
      recipe: resolved, but for the run's folder.
    """

    name: str
    number: int
    seed: str
    recipe: Recipe


def overrides_of(setting: Setting) -> list[str]:
    """The setting as a command line has it."""
    return [f"{key}={value}" for key, value in setting]


def read_space(arguments: Sequence[str]) -> Space:
    """Tells what is swept from what is fixed.

    Args:
      arguments: `key=value`; swept are `log:a..b`, `a..b` (whole numbers: all of them) and comma lists.

    Raises:
      UserError: an unknown key, a range that cannot be read, or a key that a sweep sets by itself.
    """
    fixed, swept = [], {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} has no '='; write key=value, for example optimizer.lr=log:1e-4..1e-1")
        if key == "run.dir":
            raise UserError("run.dir is chosen by the sweep for each trial; name the sweep's folder by --folder FOLDER")
        if key in swept:
            raise UserError(f"{key} is swept twice; write one range or list")
        values = _values(key, text)
        if values is None:
            fixed.append(argument)
        else:
            swept[key] = values
    seeds = swept.pop(SEED, None)
    if isinstance(seeds, Span):
        raise UserError(f"{SEED} has no order to draw from; write 0..4 or a list")
    return Space(tuple(fixed), swept, seeds.values if seeds else ())


def _values(key: str, text: str) -> Choices | Span | None:
    """What a value stands for; None: itself."""
    try:
        kind = described_field(key)
    except KeyError:
        # The recipe's own message names the nearest key.
        with_overrides(Recipe(), [f"{key}=0"])
        raise UserError(f"{key} is no key of a recipe") from None
    number = kind.startswith(("a whole number", "a finite number"))
    if number and (".." in text or text.startswith("log:")):
        return _range(key, text, whole=kind.startswith("a whole number"))
    if text.startswith("log:"):
        raise UserError(f"{key}={text}: log:a..b is for numbers, and {kind} is needed; write a list a,b,c")
    parts = list(_split(text))
    if len(parts) < 2:
        return None
    if not all(parts) or len(set(parts)) < len(parts):
        raise UserError(f"{key}={text}: a list of different values is needed, as in a,b,c")
    return Choices(tuple(parts))


def _range(key: str, text: str, *, whole: bool) -> Choices | Span:
    log = text.startswith("log:")
    low, _, high = text.removeprefix("log:").partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = math.nan, math.nan
    if not -math.inf < ends[0] < ends[1] < math.inf or (log and ends[0] <= 0):
        above = ", both above 0" if log else ""
        raise UserError(f"{key}={text}: two numbers a < b are needed{above}, as in log:1e-4..1e-1 or 0..4")
    if not whole:
        return Span(*ends, log, whole)
    if not all(end.is_integer() for end in ends):
        raise UserError(f"{key}={text}: is a range of whole numbers; write whole ends")
    if log:
        return Span(*ends, log, whole)
    if ends[1] - ends[0] >= MAX_VALUES:
        raise UserError(f"{key}={text}: more than {MAX_VALUES:,} values; write log:a..b or a list")
    return Choices(tuple(str(value) for value in range(int(ends[0]), int(ends[1]) + 1)))


def _split(text: str) -> Iterator[str]:
    """At commas outside brackets: `[1,2],[3]` are two lists."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()


def settings(space: Space, strategy: Strategy, trials: int, seed: int) -> list[Setting]:
    """The settings that a sweep tries; the same arguments give the same ones.

    Args:
      space: of the sweep.
      strategy: `grid` (all combinations), `random` and `halving` (drawn; none twice where all keys have lists).
      trials: how many are drawn; 0: 10. With `grid` 0.
      seed: of the draws.

    Raises:
      UserError: nothing to try, a range that no grid can have, or a number that is none of the strategy.
    """
    if not space.swept and not space.seeds:
        raise UserError("no key has a range or a list; write what to try, such as optimizer.lr=log:1e-4..1e-1")
    if strategy == "grid":
        return _grid(space, trials)
    if trials < 0:
        raise UserError(f"--trials is {trials}; with --strategy {strategy} 1 or more settings are drawn")
    trials = trials or DRAWN
    if trials > MAX_VALUES:
        raise UserError(f"--trials is {trials:,}; {MAX_VALUES:,} at most are kept in one sweep")
    rng = np.random.default_rng(seed)
    lists = [values for values in space.swept.values() if isinstance(values, Choices)]
    sizes = [len(values.values) for values in lists]
    if len(lists) == len(space.swept):
        count = math.prod(sizes)
        # Without replacement, in the order of the draws; numbers of combinations stay small enough for an index.
        chosen = (
            rng.choice(count, min(count, trials), replace=False) if count < 2**31 else rng.integers(count, size=trials)
        )
        return [_combination(space, list(np.unravel_index(index, sizes)) if sizes else []) for index in chosen]
    return [tuple((key, values.draw(rng)) for key, values in space.swept.items()) for _ in range(trials)]


def _grid(space: Space, trials: int) -> list[Setting]:
    if trials:
        raise UserError("--trials has no effect with --strategy grid, which tries all; leave it out")
    for key, values in space.swept.items():
        if isinstance(values, Span):
            raise UserError(f"{key}: a grid needs a list, such as 1e-3,1e-2,1e-1; or write --strategy random")
    lists = [values.values for values in space.swept.values() if isinstance(values, Choices)]
    if math.prod(map(len, lists)) > MAX_VALUES:
        raise UserError(f"the grid has more than {MAX_VALUES:,} points; write --strategy random")
    return [tuple(zip(space.swept, values, strict=True)) for values in itertools.product(*lists)]


def _combination(space: Space, places: Sequence[int]) -> Setting:
    lists = [values.values for values in space.swept.values() if isinstance(values, Choices)]
    return tuple((key, values[at]) for key, values, at in zip(space.swept, lists, places, strict=True))


def rung_shares(count: int, strategy: Strategy) -> list[float]:
    """Of the recipe's duration, what the trials of each rung train; one rung, whole, unless settings are halved."""
    rungs = 1
    while strategy == "halving" and KEPT**rungs <= count:
        rungs += 1
    return [1 / KEPT ** (rungs - 1 - rung) for rung in range(rungs)]


def promoted(count: int) -> int:
    """How many of so many settings go on to the next rung."""
    return max(1, count // KEPT)


def trials_of(
    recipe: Recipe, space: Space, chosen: Iterable[tuple[int, Setting]], rung: int = 0, share: float = 1.0
) -> list[Trial]:
    """The runs of some settings: one for each seed.

    Args:
      recipe: with what is fixed.
      space: of the sweep.
      chosen: numbers and settings.
      rung: of the halving, counted from 0.
      share: of the recipe's duration.

    Raises:
      UserError: a recipe that cannot be.
    """
    trials = []
    for number, setting in chosen:
        for seed in space.seeds or ("",):
            changes = overrides_of(setting) + ([f"{SEED}={seed}"] if seed else [])
            name = f"{number:04}" + (f"-rung{rung}" if share < 1 or rung else "") + (f"-seed{seed}" if seed else "")
            trials.append(Trial(name, number, seed, shortened(with_overrides(recipe, changes), share)))
    return trials


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its duration, and of all lengths within it: warm-up, cool-down, phases.

    So a rung's schedule has the shape of the whole one. When to evaluate and to save stays as it is.
    """
    changes: dict[str, Any] = {}
    if share < 1:
        for name, section in recipe:
            for key, value in section:
                shorter = _shortened(value, share)
                if name not in ("evaluate", "checkpoint") and shorter != value:
                    changes[f"{name}.{key}"] = shorter
    return with_overrides(recipe, {key: _plain(value) for key, value in changes.items()})


def _shortened(value: Any, share: float) -> Any:
    if isinstance(value, Duration) and value.value:
        shorter = value.value * share
        # Thousandths of an epoch, so that the table and the recipes of the trials can be read.
        return Duration(max(1, round_half_up(shorter)) if value.unit == "steps" else round(shorter, 3), value.unit)
    if isinstance(value, Section):
        return value.model_copy(update={key: _shortened(part, share) for key, part in value})
    return tuple(_shortened(part, share) for part in value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    """As YAML would have it."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Duration) else value


def base_recipe(name: str, space: Space) -> Recipe:
    """The recipe with what is fixed; UserError where it cannot be."""
    return load_recipe(name, space.fixed)


def command(name: str, space: Space, setting: Setting) -> str:
    """What trains a setting alone."""
    return shlex.join(["pcls", "train", name, *space.fixed, *overrides_of(setting)])


def checked_strategy(text: str) -> Strategy:
    """The strategy of this name; UserError where there is none."""
    match text:
        case "random" | "grid" | "halving":
            return text
    raise UserError(f"--strategy {re.sub('[^ -~]', '?', text)!r}: one of random, grid, halving is needed")
