"""Configs are frozen dataclasses; this is their JSON form."""

from collections.abc import Mapping
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
