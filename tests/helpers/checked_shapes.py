"""While tests run, annotations with shapes are checked, and no others.

pyright knows all others, and to check them at every call takes a fifth of the time. It is imported before the packages
that --jaxtyping-packages names.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_args

import accelerate  # noqa: F401
import jaxtyping
import matplotlib.figure  # noqa: F401
import sklearn.linear_model  # noqa: F401
import timm  # noqa: F401
import torch._dynamo  # noqa: F401
import torchaudio  # noqa: F401
import wandb  # noqa: F401
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError

# The others are here since what a checked module imports first is compiled at every start: jaxtyping looks for its
# bytecode under the name of that of checked modules.

check_all = jaxtyping.jaxtyped


def jaxtyped(*args: Any, **options: Any) -> Any:
    """jaxtyping.jaxtyped, which leaves alone what states no shape."""
    made = check_all(*args, **options)
    if args:  # not as the import hook calls it
        return made

    def decorate(checked: Callable) -> Callable:
        if not any(map(has_shape, annotations(checked))):
            return checked
        if inspect.isfunction(checked):
            return checked_once(checked)
        if is_dataclass(checked) and "__init__" in vars(checked):
            checked.__init__ = checked_once(checked.__init__)
            return checked
        return made(checked)

    return decorate


def checked_once(function: Callable) -> Callable:
    """As jaxtyping does it, but the arguments are not bound to their names, and not checked again with the result."""
    with_checks = beartype(conf=BeartypeConf(violation_type=TypeCheckError))(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **options)
        with check_all("context"):
            return with_checks(*args, **options)

    return call


def annotations(checked: Callable) -> list[Any]:
    """Of a function, or of the attributes of a class."""
    classes = checked.__mro__ if inspect.isclass(checked) else (checked,)
    return [each for owner in classes for each in getattr(owner, "__annotations__", {}).values()]


def has_shape(annotation: Any) -> bool:
    if isinstance(annotation, str):  # of a class that is not there yet
        return "[" in annotation
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    within = annotation if isinstance(annotation, list) else get_args(annotation)  # the arguments of a Callable
    return any(map(has_shape, within))


jaxtyping.jaxtyped = jaxtyped
