"""Functions with a text: the same lines run in the kit and stand in the scripts that it writes."""

import functools
import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import torch
from torch import nn


class Written:
    """A function that is compiled from its text, which may use torch, nn and `names`."""

    def __init__(self, text: str, **names: Any):
        self.text = dedent(text).strip()
        names |= {"torch": torch, "nn": nn}
        exec(compile(self.text, "<written by the kit>", "exec"), names)
        self.name = self.text.partition("def ")[2].partition("(")[0]
        self.function: Callable[..., Any] = names[self.name]

    def with_first_line(self, line: str) -> "Written":
        """The function that runs a line before."""
        head, body = self.text.split("\n", 1)
        return Written(f"{head}\n    {line}\n{body}")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)


def expression_of(thing: Any, imports: set[str]) -> str | None:
    """An expression of Python for a thing, to whose imports it adds; None if no other file can import it."""
    if isinstance(thing, functools.partial):
        parts = [expression_of(part, imports) for part in (thing.func, *thing.args)]
        named = {key: expression_of(value, imports) for key, value in thing.keywords.items()}
        if None in parts or None in named.values():
            return None
        imports.add("from functools import partial")
        return f"partial({', '.join([*map(str, parts), *(f'{key}={value}' for key, value in named.items())])})"
    if thing is nn.functional.scaled_dot_product_attention:  # which does not know its module
        return "torch.nn.functional.scaled_dot_product_attention"
    if thing is None or isinstance(thing, bool | int | float | str):
        return repr(thing)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not module or not name or module == "__main__" or _found(module, name) is not thing:
        return None
    imports.add(f"import {module}")
    return f"{module}.{name}"


def _found(module: str, name: str) -> Any:
    """What is in a module at a name with dots; None if there is nothing, as in the body of a function."""
    import sys

    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """A function's parameters by name; none if they are not known."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def required(function: Callable) -> list[str]:
    """The names of the parameters that must be given."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters(function).values() if p.default is p.empty and p.kind not in variable]
