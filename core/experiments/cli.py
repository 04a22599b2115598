"""What every command line shares: arguments of a config, and one sentence where the user made a mistake."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..files import reason
from ..memory import limit_memory, memory_explained
from .options import parse_options


def predict_command(program: str, arguments: type, run: Callable[[Any], None], to_the_end: bool = False) -> None:
    """Parse `arguments` and `run` on them: to predict, to export, to compare.

    to_the_end: what it writes to files matters more than what it prints.
    """
    user_errors(lambda: run(parse_options(arguments, sys.argv[1:], program)), to_the_end)


def user_errors(work: Callable[[], None], to_the_end: bool = False) -> None:
    """What goes wrong by the user's doing ends the process with one sentence, and 1 or for unknown options 2.

    to_the_end: the work goes on where what it prints can no longer be written (`| head`, a full disk).
    """
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
    except BrokenPipeError:  # whoever read the output (`| head`) has seen enough
        _lead_nowhere(sys.stdout)
    except OSError as error:
        where = error.filename if error.filename is not None else "Standard output or a file"
        _end(f"{where} cannot be read or written: {reason(error)}.", 1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        sys.stdout, sys.stderr, warnings.formatwarning = before


def _open_streams() -> None:
    """Streams that were closed (`>&-`) lead nowhere, instead of into the next file that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str, status: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


class Unbreakable:
    """A stream that may lose its other end: from then on what is written to it is dropped."""

    def __init__(self, stream: io.TextIOBase):
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
            _lead_nowhere(self.stream)


def say(line: str) -> None:
    """Print a line while files are still to be written: whoever reads (`| head`) may have seen enough."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _lead_nowhere(sys.stdout)


def _lead_nowhere(stream: io.TextIOBase) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
