"""Configs: frozen dataclasses whose values are checked against the bounds of their fields, and their form in JSON.

    @configclass
    class Options:
        width: Size = 64           # a whole number of at least 1
        dropout: BelowOne = 0.0    # from 0 to less than 1

A config is checked when it is created, whether in Python, from the command line, or from a file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from annotated_types import Interval
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import UserError
from .sparse import Pattern

T = TypeVar("T")

# Numbers in a config may not be NaN or infinite, and True does not count as 1.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict(), Interval(ge=-1e9, le=1e9)]
Natural = Annotated[Whole, Interval(ge=0, le=2**31)]
Count = Annotated[Whole, Interval(ge=1, le=2**31)]
Size = Annotated[Whole, Interval(ge=1, le=2**20)]
"""A width, a length, a number of parts: something that memory grows with."""
Layers = Annotated[Whole, Interval(ge=1, le=1000)]
NotNegative = Annotated[float, Strict(), Interval(ge=0, le=1e9)]
Positive = Annotated[float, Strict(), Interval(gt=0, le=1e9)]
UpToOne = Annotated[float, Strict(), Interval(gt=0, le=1)]
ZeroToOne = Annotated[float, Strict(), Interval(ge=0, le=1)]
BelowOne = Annotated[float, Strict(), Interval(ge=0, lt=1)]
"""A probability such as that of dropout, which may not be 1."""
BetweenZeroAndOne = Annotated[float, Strict(), Interval(gt=0, lt=1)]
"""A fraction that is split off, which may be neither 0 nor 1."""

RULES = ConfigDict(allow_inf_nan=False, extra="forbid", arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def configclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass with keyword arguments, whose values are checked against the types of its fields."""
    made = dataclass(cls, frozen=True, kw_only=True, config=RULES)
    make = made.__init__

    def __init__(self, **values: Any) -> None:
        try:
            make(self, **values)
        except ValidationError as error:
            raise _setting_error(made, error) from None

    __init__.__signature__ = getattr(make, "__signature__", None)
    made.__init__ = __init__
    return made  # pyright: ignore[reportReturnType]


class SettingError(UserError):
    """A value that a config does not accept.

    cls: the class of the config. name: of the field, dotted if it is in a nested config. problem: the rest of the
    sentence.
    """

    def __init__(self, cls: type, name: str, problem: str):
        super().__init__(f"{cls.__name__}: {f'{name} ' if name else ''}{problem}.")
        self.cls, self.name, self.problem = cls, name, problem


def to_dict(settings: Any) -> dict[str, Any]:
    """A config as nested dicts, ready for JSON."""
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}


def from_dict(cls: type[T], data: T | Mapping[str, Any]) -> T:
    """The config that `to_dict` wrote; a config is returned as it is. An error names the wrong field."""
    if isinstance(data, cls):
        return data
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        raise _setting_error(cls, error) from None


def _plain(value: Any) -> Any:
    match value:
        case Path() | Pattern():
            return str(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if is_dataclass(value):
            return to_dict(value)
        case _:
            return value


def flatten(settings: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Nested settings under dotted names such as train.lr."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{parent}{name}.") if isinstance(value, Mapping) else {f"{parent}{name}": value}
    return flat


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name, if no other name has the same."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


# --- Sentences for wrong values ---------------------------------------------------------------------

PROBLEMS: dict[str, str] = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "path_type": "must be a path",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "dataclass_type": "must hold the settings of a {class_name}",
    "dataclass_exact_type": "must hold the settings of a {class_name}",
    "unexpected_keyword_argument": "is not a setting",
    "value_error": "is wrong: {error}",
    "missing": "is missing",
    "missing_keyword_only_argument": "is missing",
}
UNQUOTED = ("value_error", "unexpected_keyword_argument", "missing", "missing_keyword_only_argument")


def _setting_error(cls: type, error: ValidationError) -> UserError:
    """The first error; if a value may be of several types, a broken bound is preferred to a wrong type."""
    faults = error.errors(include_url=False)
    for fault in faults:
        if isinstance(cause := fault.get("ctx", {}).get("error"), UserError):  # pydantic collects any ValueError
            return cause
    names = [_dotted(cls, fault["loc"]) for fault in faults]
    same_field = [
        fault for fault, name in zip(faults, names, strict=True) if name.split("[")[0] == names[0].split("[")[0]
    ]
    fault = next((f for f in same_field if not f["type"].endswith(("_type", "_parsing", "_error"))), same_field[0])
    context = {name: f"{v:g}" if isinstance(v, float) else v for name, v in fault.get("ctx", {}).items()}
    problem = PROBLEMS.get(fault["type"], fault["msg"][:1].lower() + fault["msg"][1:]).format(**context)
    if fault["type"] not in UNQUOTED:
        given = repr(fault["input"])
        problem += f", not {given if len(given) <= 80 else f'{given[:77]}...'}"
    return SettingError(cls, _dotted(cls, fault["loc"]), problem)


def _dotted(cls: Any, place: Sequence[str | int]) -> str:
    """The dotted name of a field, with numbers of entries; pydantic also lists the types that it tried."""
    words = ""
    for part in place:
        known = {field.name: field.type for field in fields(cls)} if is_dataclass(cls) else {}
        if isinstance(part, int):
            words += f"[{part}]"
        elif part in known or not words:
            words += f".{part}" if words else part
            choices = [kind for kind in _kinds(known.get(part)) if isinstance(kind, type) and is_dataclass(kind)]
            cls = choices[0] if len(choices) == 1 else choices
        elif isinstance(cls, list):  # of several configs, the one with this name
            cls = next((kind for kind in cls if part in (kind.__name__, getattr(kind, "name", None))), None)
        elif is_dataclass(cls):
            words += f".{part}"
    return words


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    parts = get_args(annotation)
    return [annotation] if not parts else [kind for part in parts for kind in _kinds(part)]
