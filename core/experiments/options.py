"""Options of a command line from a config: --help shows their bounds, and each mistake gets one sentence."""

import contextlib
import io
import operator
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, reduce
from itertools import zip_longest
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from annotated_types import Interval

from ..config import SettingError
from ..errors import UserError
from ..sparse import Pattern

T = TypeVar("T")
REGISTRY = tyro.constructors.ConstructorRegistry()
PLACES = ("--out", "--data.path", "--data.cache")
NO_LIMIT = 1e6  # a larger upper bound only catches slips, and is not shown


class UsageError(UserError):
    """Options that cannot be understood."""

    status = 2


@REGISTRY.primitive_rule
def _pattern_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A pattern is written as text: --model.patterns 'Local(128)'."""
    if info.type is not Pattern:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATTERN",
        instance_from_str=lambda words: words[0],  # the config makes the pattern of it
        is_instance=lambda value: isinstance(value, Pattern),
        str_from_instance=lambda pattern: [str(pattern)],
    )


def parse_options(
    kind: type[T], words: Sequence[str], program: str, description: str | None = None, default: T | None = None
) -> T:
    """A config of this kind: `default`, where given, changed by the options."""
    for word, value in zip_longest(words, words[1:]):
        if word.split("=")[0] in PLACES and (word.endswith("=") or value == ""):  # for Path, it is this directory
            raise UsageError(f"{word.rstrip('=')} has an empty value: is a variable of the shell not set?")
    show_bounds(kind)
    with_default: dict[str, Any] = {} if default is None else {"default": default}
    output = io.StringIO()
    try:
        with REGISTRY, contextlib.redirect_stderr(output):
            return tyro.cli(kind, args=list(words), prog=program, description=description, **with_default)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        error = _cause(end)
        if isinstance(error, SettingError):
            raise UserError(f"{_option(kind, error, words)} {error.problem}.") from None
        raise error or UsageError(f"{_sentence(output.getvalue())}; {program} --help lists the options.") from None


def _cause(end: BaseException) -> UserError | None:
    """The error of a config that tyro ended the process for: it takes any ValueError for one of its own."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return error


def _option(kind: type, error: SettingError, words: Sequence[str]) -> str:
    """The option that sets the field of an error."""
    name = re.sub(r"\[\d+\]", "", error.name)
    options = ["--" + ".".join((*path, name)).replace("_", "-") for path in _paths(kind, error.cls)]
    given = {word.split("=")[0].replace("_", "-") for word in words}
    return next((option for option in options if option in given), options[0] if options else error.name)


def _paths(kind: type, wanted: type) -> Iterator[tuple[str, ...]]:
    """The places in a config that have a config of another kind."""
    if kind is wanted:
        yield ()
    for field in fields(kind):
        for config in _configs(field.type):
            yield from ((field.name, *path) for path in _paths(config, wanted))


def _configs(annotation: Any) -> list[type]:
    """The configs that a field may hold: one, or several to choose from."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    return [config for part in get_args(annotation) for config in _configs(part)]


# --- tyro's messages ------------------------------------------------------------------------------------------------

SENTENCES = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, not \2"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number, not \2"),
    (r"Error parsing (\S+): no type matching (.*) could be instantiated from \[(.*?)\]\..*", r"\1 must be \2, not \3"),
    (r"Missing value for argument '(\S+)'. Expected 1 values\.", r"\1 needs a value"),
    (r"Missing value for argument '(\S+)'. Expected (\S+) values\.", r"\1 needs \2 values"),
    (r"invalid choice (.*) for argument '(\S+)'. Expected one of \((.*)\)\.", r"\2 must be one of \3, not \1"),
    (r"Unrecognized options: ([^,]*).* Perhaps you meant: (--[\w.-]+).*", r"there is no option \1 (did you mean \2?)"),
    (r"Unrecognized options: (-[^,]*).*", r"there is no option \1"),
    (r"Unrecognized options: ([^,]*).*", r"\1 belongs to no option"),
    (r"Missing from .*?: (.*?)( \(required\))?", r"missing: \1"),
)


def _sentence(box: str) -> str:
    """The text of a framed message, in one line; where stdout is not UTF-8, the frame has rules of hyphens alone."""
    lines = [line.strip("│╭╮╰╯ ").strip() for line in box.splitlines()[1:]]
    if lines and not lines[0].strip("-"):
        del lines[0]
    rules = [number for number, line in enumerate(lines) if line and not line.strip("─-")]
    suggestion = next((number for number, line in enumerate(lines) if line.startswith("Perhaps")), None)
    message = " ".join(lines[: rules[0]] if rules else lines).strip()
    if suggestion is not None:
        message += " " + " ".join(lines[suggestion : suggestion + 2])
    for form, sentence in SENTENCES:
        if re.fullmatch(form, message):
            return re.sub(form, sentence, message).replace("}|", "} or ").replace("|{", " or {")
    return message.rstrip(".")


# --- bounds in --help -----------------------------------------------------------------------------------------------


@cache
def show_bounds(kind: type) -> None:
    """Make --help show the bounds of a config's numbers: tyro takes them from the annotations."""
    for cls in kind.__mro__:
        for name, annotation in typing.get_type_hints(cls, include_extras=True).items() if is_dataclass(cls) else ():
            if name in vars(cls).get("__annotations__", {}):
                cls.__annotations__[name] = _with_bounds(annotation)
            for config in _configs(annotation):
                show_bounds(config)


def _with_bounds(annotation: Any) -> Any:
    parts, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        intervals = [rule for rule in annotation.__metadata__ if isinstance(rule, Interval)]
        if parts[0] in (int, float) and intervals:
            return Annotated[annotation, _number(parts[0], intervals[-1])]
        return annotation
    if origin in (Union, UnionType):
        return reduce(operator.or_, map(_with_bounds, parts))
    if origin is tuple:
        return tuple[tuple(part if part is ... else _with_bounds(part) for part in parts)]
    return annotation


def _number(kind: type, bounds: Any) -> tyro.constructors.PrimitiveConstructorSpec:
    words = kind.__name__.upper()
    upper: Any = bounds.le if bounds.le is not None else bounds.lt
    lower: Any = bounds.ge
    if upper is not None and upper < NO_LIMIT:
        words += f"{'<=' if bounds.le is not None else '<'}{upper:g}"
    if lower is not None and lower > -NO_LIMIT:
        words = f"{lower:g}<={words}" if "<" in words else f"{words}>={lower:g}"
    elif bounds.gt is not None:
        words = f"{bounds.gt:g}<{words}" if "<" in words else f"{words}>{bounds.gt:g}"
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=words,
        instance_from_str=lambda given: kind(given[0]),
        is_instance=lambda value: type(value) is kind or (kind is float and type(value) is int),
        str_from_instance=lambda value: [str(value)],
    )
