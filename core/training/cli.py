"""What every command line shares: arguments of a dataclass, and one sentence where the user made a mistake."""

import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from ..errors import UserError


def predict_command(program: str, arguments: type, run: Callable[[Any], None]) -> None:
    """Parse `arguments` and `run` on them: to predict, to export, to compare."""
    user_errors(lambda: run(tyro.cli(arguments, prog=program)))


def user_errors(work: Callable[[], None]) -> None:
    """What goes wrong by the user's doing ends the process with 1 and one sentence."""
    try:
        work()
    except UserError as error:
        # From a loading process the message comes wrapped in its traceback.
        print(f"error: {str(error).rsplit('UserError: ', 1)[-1].strip()}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
