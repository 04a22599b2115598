"""What all command lines share: options from a config, and one sentence for a mistake of the user."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..files import reason
from ..memory import limit_memory, memory_explained
from ..startup import imported
from .options import parse_options


def predict_command(program: str, arguments: type, run: Callable[[Any], None], to_the_end: bool = False) -> None:
    """Parse the command line as a config of class `arguments`, and call `run` with it.

    to_the_end: see `user_errors`.
    """
    user_errors(lambda: run(parse_options(arguments, sys.argv[1:], program)), to_the_end)


def user_errors(work: Callable[[], None], to_the_end: bool = False) -> None:
    """Do the work; a UserError ends the process with one sentence and exit status 1, or 2 for unknown options.

    to_the_end: the work continues if its output can no longer be written (`| head`, a full disk), since it also writes
    files.
    """
    imported()
    limit_memory()
    before = sys.stdout, sys.stderr, warnings.formatwarning
    _open_streams()
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if to_the_end:
        sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    try:
        with memory_explained("this model and its inputs", "choose smaller ones"):
            work()
        sys.stdout.flush()
    except UserError as error:
        # From a loading process the message comes wrapped in its traceback.
        _end(str(error).rsplit("UserError: ", 1)[-1].strip(), getattr(error, "status", 1))
    except BrokenPipeError:  # the reader of the output (`| head`) has ended
        _discard(sys.stdout)
    except OSError as error:
        where = error.filename if error.filename is not None else "Standard output or a file"
        _end(f"{where} cannot be read or written: {reason(error)}.", 1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        sys.stdout, sys.stderr, warnings.formatwarning = before


def _open_streams() -> None:
    """Connect closed streams (`>&-`) to /dev/null: otherwise they would write into the next file that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path can have bytes that are not valid text
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str, status: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


class Unbreakable:
    """A stream whose reader may end: from then on, the output is dropped."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError:  # a closed pipe or terminal, a full disk
            _discard(self.stream)


def say(line: str) -> None:
    """Print a line before more files are written: the reader of the output (`| head`) may have ended."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _discard(sys.stdout)


def _discard(stream: Any) -> None:
    """From now on, the output of the stream is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
