"""Progress of long work: a bar on a terminal, and elsewhere (a file, a job's log) a line every so often.

Both go to standard error, so that what the work prints can be read by other programs.
"""

import sys
import time
from typing import Any

from tqdm import tqdm

SOON, SELDOM = 10.0, 60.0  # seconds between lines, in the first minute and after it
USUAL_WIDTH = 80  # columns of a terminal that does not state how many it has


class Progress:
    """Of `total` units of work, `first` of which are done.

    name: of the work. quiet: show nothing but what is said.
    """

    def __init__(self, name: str, total: int, unit: str, first: int = 0, quiet: bool = False):
        self.name, self.total, self.unit, self.first, self.done = name, total, unit, first, first
        self.started = self.shown = time.monotonic()
        self.prints = not quiet and not _is_terminal()
        # It stays on the screen when it is done, and is redrawn ten times a second at most.
        self.bar = _Bar(
            total=total, initial=first, unit=unit, dynamic_ncols=True, desc=name, disable=quiet or self.prints
        )

    def advance(self, count: int = 1, **figures: str) -> None:
        """So many more units are done; figures: what is shown beside them, such as the loss."""
        self.done += count
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.prints and now - self.shown >= (SOON if now - self.started < SELDOM else SELDOM):
            self.shown = now
            print(self.line(now - self.started, figures), file=sys.stderr, flush=True)

    def line(self, seconds: float, figures: dict[str, str]) -> str:
        """What is said where there is no terminal, so many seconds after the start."""
        rate = (self.done - self.first) / seconds
        shown = [f"{name} {value}" for name, value in figures.items()]
        speed = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}"
        left = tqdm.format_interval((self.total - self.done) / rate)
        return f"{self.name}: {self.unit} {self.done} of {self.total}: {', '.join([*shown, speed, f'{left} left'])}"

    def say(self, text: str) -> None:
        """Print a line to standard output, above the bar."""
        self.bar.write(text)

    def close(self) -> None:
        self.bar.close()


class _Bar(tqdm):
    """A progress bar. On a narrow terminal it is shown without its name, then also without the figures, and at last
    without the times."""

    @staticmethod
    def format_meter(n: Any, total: Any, elapsed: Any, ncols: Any = None, **rest: Any) -> str:
        columns = ncols or USUAL_WIDTH
        for left_out in ((), ("prefix",), ("prefix", "postfix")):
            given: dict[str, Any] = {**rest, **dict.fromkeys(left_out, "")}
            without_bar: dict[str, Any] = {**given, "bar_format": "{l_bar}{r_bar}"}
            text = tqdm.format_meter(n, total, elapsed, **without_bar)
            if len(text) < columns:
                return tqdm.format_meter(n, total, elapsed, ncols=columns, **given)
        return f"{n}/{total}"[:columns]


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (OSError, ValueError):  # it is closed
        return False
