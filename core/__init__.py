"""The shared core: knows attention, and no modality.

Its names are those of api.py, which is loaded when the first of them is used: what needs only a part of the core, as
the conformance kit does (testing/), needs only the libraries of that part.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    api = import_module(f"{__name__}.api") if not name.startswith("_") or name == "__all__" else None
    if not hasattr(api, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(api, name))
