"""The kinds of fields that a recipe has: each is checked where it enters."""

from __future__ import annotations

import math
import re
import warnings
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from pcls.config.duration import Duration


def _duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    try:
        return Duration.parse(value)
    except (TypeError, ValueError):
        raise PydanticCustomError("duration", "a duration such as 10 epochs or 600 steps is needed") from None


def _number(value: Any) -> Any:
    # YAML writes 1 for 1.0; booleans are no numbers here, though Python counts them as such.
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def broken_rule(key: str, message: str) -> PydanticCustomError:
    """A rule that joins several fields; `key` is the one whose line the user should look at."""
    return PydanticCustomError("rule", "{key} {message}", {"key": key, "message": message})


def no_number(value: Any) -> Any:
    """Lets all pass but numbers: 1 would be taken for true."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticCustomError("no_number", "no number is allowed")
    return value


def list_as_tuple(value: Any) -> Any:
    """YAML knows lists only; sections are frozen."""
    return tuple(value) if isinstance(value, list) else value


def _named_weights(value: Any) -> Any:
    """Pairs of a name and a number > 0, of a map or as a recipe's dump shows them: sections are frozen."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    whole = isinstance(pairs, list | tuple)
    if not whole or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise PydanticCustomError("weights", "a map of names to numbers > 0 is needed, as in {cat: 1.0, dog: 3.5}")
    found: dict[str, float] = {}
    for name, weight in pairs:
        # YAML reads the names of digits as numbers.
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        if not isinstance(name, str) or name in found:
            fault = "comes twice" if name in found else "is no text: write it in quotes"
            raise PydanticCustomError("weights", "name {name} {fault}", {"name": repr(name)[:60], "fault": fault})
        number = _number(weight)
        if not isinstance(number, float) or not 0 < number < math.inf:
            reason = {"name": repr(name)[:60], "weight": repr(weight)[:60]}
            text = "the weight of {name} is {weight}; a finite number > 0 is needed"
            raise PydanticCustomError("weights", text, reason)
        found[name] = number
    return tuple(found.items())


def _regular_expression(text: str) -> str:
    try:
        with warnings.catch_warnings():
            # What Python's next version may read in another way.
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        message = "a regular expression is needed ({reason})"
        raise PydanticCustomError("regex", message, {"reason": str(error)}) from None
    return text


Length = Annotated[
    Duration, BeforeValidator(_duration), PlainSerializer(str, return_type=str), Field(description="duration")
]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)]
# One that may be empty.
SomePattern = Annotated[str, AfterValidator(_regular_expression)]
Integers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(list_as_tuple)]

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(list_as_tuple)]

NamedWeights = Annotated[tuple[tuple[str, float], ...], BeforeValidator(_named_weights)]


class Section(BaseModel):
    """A frozen part of the recipe that knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)
