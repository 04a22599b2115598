"""Configs are frozen dataclasses; this is their JSON form."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import dacite

from .errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, ready for JSON."""
    return _plain(asdict(config))


def from_dict(cls: type[T], data: T | Mapping[str, Any]) -> T:
    """The config that `to_dict` wrote; a config is returned as it is. A wrong field or type is named."""
    if isinstance(data, cls):
        return data
    try:
        return dacite.from_dict(cls, data, dacite.Config(cast=[tuple, Path, float], strict=True))
    except dacite.DaciteError as error:
        raise UserError(f"Not a valid {cls.__name__}: {error}.") from None


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
        case _:
            return value
