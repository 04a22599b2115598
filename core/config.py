"""Configs are frozen dataclasses; this is their JSON form, and what their settings are called."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import dacite

from .errors import UserError
from .sparse import Pattern

T = TypeVar("T")
HOOKS = {Pattern: lambda value: value if isinstance(value, Pattern) else Pattern.parse(value)}


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, ready for JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def from_dict(cls: type[T], data: T | Mapping[str, Any]) -> T:
    """The config that `to_dict` wrote; a config is returned as it is. A wrong field or type is named."""
    if isinstance(data, cls):
        return data
    try:
        return dacite.from_dict(cls, data, dacite.Config(cast=[tuple, Path, float], type_hooks=HOOKS, strict=True))
    except dacite.DaciteError as error:
        raise UserError(f"Not a valid {cls.__name__}: {error}.") from None


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
    """Nested settings by their dotted names: train.lr."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{parent}{name}.") if isinstance(value, Mapping) else {f"{parent}{name}": value}
    return flat


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name, where no other has the same."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}
