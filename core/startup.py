"""Commands start and end sooner: Python looks for no garbage among what they import, a million objects that stay."""

import atexit
import gc
import sys

_put_off = False


def import_quickly(package: str) -> None:
    """Put garbage collection off, in a process that runs a command of this package (`python -m package.command`).

    To be called before the package imports anything else, if all its commands call `imported`.
    """
    global _put_off
    # argv begins with -m while Python looks for the module: -m package.command, -mpackage.command, -um package.command.
    words = iter(sys.orig_argv[1:])
    option = next((word for word in words if word.startswith("-") and "m" in word), "")
    if sys.argv[:1] == ["-m"] and (option.partition("m")[2] or next(words, "")).startswith(f"{package}."):
        gc.disable()
        _put_off = True


def imported() -> None:
    """Resume garbage collection, if it was put off; what is there stays to the end."""
    global _put_off
    if _put_off:
        _put_off = False
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
