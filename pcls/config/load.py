"""Recipes from files and overrides, with errors that name the line, the value and what is allowed."""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pcls.config.duration import Duration
from pcls.config.schema import Recipe
from pcls.errors import UserError

MAX_RECIPE_BYTES = 1 << 20
# Far above any recipe; aliases of aliases could stand for more than memory holds.
MAX_RECIPE_VALUES = 100_000
# PyYAML's constructors raise whatever they meet: `!!bool x` is a KeyError, `!!timestamp x` an AttributeError.
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError)

Overrides = Mapping[str, Any] | Sequence[str]


@dataclass
class _Draft:
    """A recipe's plain values, and where each key was written."""

    values: dict[str, Any]
    base: str
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """The file and line, or override, that wrote the key or the nearest section around it."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.base)


def recipes_folder() -> Path:
    """The folder of named recipes: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def named_recipes() -> dict[str, Path]:
    """The recipes that come with pcls, by name."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given as a path or as a name of `named_recipes`; UserError where there is none."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise UserError(f"recipe {str(name)!r} cannot be read ({error.strerror})") from error
    known = named_recipes()
    if str(name) in known:
        return known[str(name)]
    raise UserError(f"recipe {str(name)!r} is neither a file nor a known name; {_nearest(path.stem, sorted(known))}")


def load_recipe(name: str | Path, overrides: Overrides = ()) -> Recipe:
    """Reads, overrides and validates a recipe.

    Args:
      name: a YAML file, or a name of `named_recipes`.
      overrides: `["optimizer.lr=1e-3", ...]` or `{"optimizer.lr": 1e-3, ...}`; they win over the file.

    Raises:
      UserError: one line: place, key, value, and what is allowed.
    """
    path = find_recipe(name)
    draft = _read(path)
    _apply(draft, overrides)
    run = draft.values.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("dir", f"runs/{path.stem}")
    return _validate(draft)


def with_overrides(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with some keys changed, validated again."""
    draft = _Draft(recipe.model_dump(mode="json"), "recipe")
    _apply(draft, overrides)
    return _validate(draft)


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back to the same recipe."""
    # ASCII with escapes: PyYAML writes some line breaks of Unicode (U+0085) plainly, and reads them back as spaces.
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, in the schema's order: `{"train.batch_size": 128, ...}`."""
    return dict(_flatten(recipe.model_dump(mode="json")))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Reading


def _read(path: Path) -> _Draft:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UserError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes: this is no recipe")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start:,}): this is no recipe") from error
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        draft = _Draft({}, str(path))
        if node is None:
            return draft
        if _values(node) > MAX_RECIPE_VALUES:
            raise UserError(f"{path}: more than {MAX_RECIPE_VALUES:,} values: this is no recipe")
        if not isinstance(node, yaml.MappingNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise UserError(f"{path}:1: a recipe is a mapping of sections such as train, not a {kind}")
        _note_places(node, "", draft)
        draft.values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except YAML_ERRORS as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return draft


def _values(node: yaml.Node) -> int:
    """Nodes in a document with its aliases written out, counted until there are too many."""
    count, waiting = 0, [node]
    while waiting and count <= MAX_RECIPE_VALUES:
        count += 1
        node = waiting.pop()
        if isinstance(node, yaml.CollectionNode):
            for child in node.value:
                waiting += child if isinstance(child, tuple) else [child]
    return count


def _note_places(node: yaml.MappingNode, prefix: str, draft: _Draft) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        place = f"{draft.base}:{key_node.start_mark.line + 1}"
        if key in draft.places:
            # PyYAML would keep the last one silently.
            raise UserError(f"{place}: {key!r} is written twice, first at {draft.places[key]}; keep one of them")
        draft.places[key] = place
        if isinstance(value_node, yaml.MappingNode):
            _note_places(value_node, f"{key}.", draft)


# Overrides


def _apply(draft: _Draft, overrides: Overrides) -> None:
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split_override, overrides)
    for key, value in pairs:
        section = draft.values
        *parents, leaf = str(key).split(".")
        for depth, parent in enumerate(parents):
            if parent not in section:
                draft.places[".".join(parents[: depth + 1])] = f"override {key}"
            child = section.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UserError(f"override {key}: {parent} is a value, not a section; {_unknown_key(key)}")
            section = child
        section[leaf] = str(value) if isinstance(value, Duration | Path) else value
        draft.places[str(key)] = f"override {key}"


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} has no '='; write key=value, for example train.batch_size=64")
    info = _field(key)
    if info is not None and info.annotation is str:
        # A folder called 2024 is no number.
        return key, value
    try:
        parsed = yaml.safe_load(value)
    except YAML_ERRORS as error:
        raise UserError(f"override {key}: {value!r} cannot be read as a YAML value") from error
    # YAML 1.1 reads 1e-3 as text. In a file that is an error that names the line; typed at a prompt it is a number.
    return key, _text_to_number(parsed) if isinstance(parsed, str) else parsed


def _text_to_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


# Validation


def _validate(draft: _Draft) -> Recipe:
    try:
        return Recipe.model_validate(draft.values)
    except ValidationError as error:
        # An unknown key is often the reason of the other errors, so it is told first.
        details = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(_message(details[0], draft)) from None


def _message(error: ErrorDetails, draft: _Draft) -> str:
    key = ".".join(map(str, error["loc"]))
    place = draft.place(key)
    if error["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(key)}"
    if error["type"] == "rule":
        return f"{draft.place(error['ctx']['key'])}: {error['msg']}"
    if error["type"] == "missing":
        return f"{place}: {key} is missing; it has no default"
    value = error["input"]
    found = f"{_display(value)} ({_kind(value)})"
    return f"{place}: {key} is {found}; {_allowed(error, key)}{_suggestion(value, _field(key))}"


def _unknown_key(key: str) -> str:
    known = list(flat_recipe(Recipe()))
    if key in known:
        # Only a file's key can hold the dot itself.
        section, _, leaf = key.partition(".")
        return f"unknown key {key!r}; in a file write {leaf} inside the section {section}"
    return f"unknown key {key!r}; {_nearest(key, known)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    # A right last word in the wrong section (lr, or train.lr) is closer than the letters say.
    same_word = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    close = difflib.get_close_matches(name, same_word or known, n=1, cutoff=0.0 if same_word else 0.5)
    return f"the nearest is {close[0]!r}" if close else f"known: {', '.join(known)}"


def _display(value: Any) -> str:
    try:
        text = json.dumps(value) if isinstance(value, str | bool) else " ".join(ascii(value).split())
    except ValueError:
        # Python refuses to write out thousands of digits, which YAML may give in hexadecimal.
        text = "an enormous number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {str: "text", list: "list", tuple: "list", dict: "section", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _suggestion(value: Any, info: FieldInfo | None) -> str:
    """`1e-3` is text to YAML 1.1; this is the commonest slip in a recipe."""
    if not isinstance(value, str) or info is None or info.annotation not in (int, float):
        return ""
    number = _text_to_number(value)
    if not isinstance(number, float) or not math.isfinite(number):
        return ""
    if info.annotation is int:
        return f": write {int(number)} without quotes" if number.is_integer() and abs(number) < 2**53 else ""
    mantissa, e, exponent = value.partition("e")
    if e and mantissa.isdecimal():
        # Its floats also need the sign of the exponent.
        return f": write {mantissa}.0e{exponent if exponent[0] in '+-' else f'+{exponent}'}"
    return f": write {yaml.safe_dump(number).split()[0]} without quotes"


def _allowed(error: ErrorDetails, key: str) -> str:
    info = _field(key)
    # What is wrong with a regular expression says more than that it is a text.
    if info is None or error["type"] in ("regex", "weights"):
        return error["msg"]
    return f"{_describe(info)} is needed"


def described_field(key: str) -> str:
    """What is allowed for a dotted key, in words."""
    info = _field(key)
    if info is None:
        raise KeyError(key)
    return _describe(info)


def _field(key: str) -> FieldInfo | None:
    """The schema's field of a dotted key; None where there is none, or for a place inside a list."""
    model: type[BaseModel] = Recipe
    *sections, leaf = key.split(".")
    for name in sections:
        section = model.model_fields.get(name)
        if section is None or not isinstance(section.annotation, type):
            return None
        if not issubclass(section.annotation, BaseModel):
            return None
        model = section.annotation
    return _given(model.model_fields.get(leaf))


def _given(info: FieldInfo | None) -> FieldInfo | None:
    """A field that may be left out (`float | None`) as it is where it is given."""
    kinds = get_args(info.annotation) if info is not None else ()
    return FieldInfo.from_annotation(kinds[0]) if types.NoneType in kinds else info


def _describe(info: FieldInfo) -> str:
    if info.annotation is Duration:
        return "a duration such as '10 epochs' or '600 steps'"
    if get_origin(info.annotation) is Literal:
        return f"one of {', '.join(map(_written, get_args(info.annotation)))}"
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        return f"a section with the keys {', '.join(info.annotation.model_fields)}"
    if info.annotation == tuple[tuple[str, float], ...]:
        return "a map of names to numbers"
    nouns = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    if isinstance(info.annotation, types.GenericAlias) or info.annotation not in nouns:
        return "a list"
    return " ".join([nouns[info.annotation], *_bounds(info)]).replace("a text >= 1", "a text that is not empty")


def _written(value: Any) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(info: FieldInfo) -> list[str]:
    bounds = []
    for rule in info.metadata:
        for sign, kind, name in (
            (">", annotated_types.Gt, "gt"),
            (">=", annotated_types.Ge, "ge"),
            ("<", annotated_types.Lt, "lt"),
            ("<=", annotated_types.Le, "le"),
            (">=", annotated_types.MinLen, "min_length"),
        ):
            if isinstance(rule, kind):
                bounds.append(f"{sign} {getattr(rule, name)}")
    return [" and ".join(bounds)] if bounds else []
