"""Numbers and files that are not what they should be: every field of every config, and some of the calls of
tests/hostile.py."""

import importlib
import pkgutil
import shutil
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import hostile
import pytest
from forks import Commands
from pydantic import TypeAdapter, ValidationError

from core.config import RULES

NEVER = (float("nan"), float("inf"), -float("inf"), 1e30, 10**30, -1e30, "word", "1", True, None, [], {})
"""What no number of a config can be."""
SOME = (0.5, 0, 1, 2, 100, 8000)
EVERY_OPTION, EVERY_FILE = 83, 47  # of about 2,500 and 1,500 calls


def configs() -> Iterator[type]:
    """The classes whose fields are checked."""
    for package in ("core", "vision", "audio", "text", "examples"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if module.name.endswith("__main__"):
                continue
            for cls in vars(importlib.import_module(module.name)).values():
                mine = isinstance(cls, type) and cls.__module__ == module.name
                if mine and is_dataclass(cls) and hasattr(cls, "__pydantic_validator__"):
                    yield cls


def numbers(annotation: Any, bounds: tuple = ()) -> Iterator[Any]:
    """The numeric types that an annotation is made of, with their bounds."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from numbers(inner, (*more, *bounds))
    elif annotation in (int, float):
        yield Annotated[annotation, *bounds] if bounds else annotation
    else:
        for part in get_args(annotation):
            yield from numbers(part)


FIELDS = {
    f"{cls.__module__}.{cls.__name__}.{name}": kind
    for cls in configs()
    for name, annotation in get_type_hints(cls, include_extras=True).items()
    for kind in numbers(annotation)
}


def test_the_fields_are_found():
    assert len(FIELDS) > 100
    assert {"core.training.config.TrainConfig.lr", "vision.model.ViTConfig.channels"} <= FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_number_of_a_config_has_bounds(name):
    number = TypeAdapter(FIELDS[name], config=RULES)
    for value in NEVER:
        if ".target_" in name and value in (1e30, 10**30, -1e30):  # labels may be of any size
            value *= 10**90
        with pytest.raises(ValidationError):
            number.validate_python(value)
    assert any(accepts(number, value) for value in SOME)
    if not accepts(number, 0.5):  # of whole numbers
        with pytest.raises(ValidationError):
            number.validate_python(1e-30)


def accepts(number: TypeAdapter, value: float) -> bool:
    try:
        return number.validate_python(value) == value
    except ValidationError:
        return False


@pytest.fixture(scope="module")
def commands():
    with Commands(*hostile.MODULES) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and finished runs, which no case changes."""
    return tmp_path_factory.mktemp("hostile")


def test_numbers_on_the_command_line_are_served_or_refused_by_a_sentence(commands, folder):
    for case in hostile.option_cases(commands, folder, EVERY_OPTION):
        assert hostile.judge(case, commands) in ("fine", "sentence"), case.name
        shutil.rmtree(folder / "run", ignore_errors=True)


def test_damaged_files_are_passed_over_or_refused_by_a_sentence(commands, folder):
    for case in hostile.file_cases(commands, folder, EVERY_FILE):
        assert hostile.judge(case, commands) in ("fine", "sentence"), case.name
