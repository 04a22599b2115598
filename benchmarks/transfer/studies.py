"""What the commands of studies share: their options, and how a study's table is kept."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core import UserError

from .commands import Commands


def study_parser(module: str, description: str | None, names: str) -> ArgumentParser:
    """names: which studies there are, in words."""
    parser = ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    out = Path("runs") / module.split(".")[-1]
    parser.add_argument("--out", type=Path, default=out, help="directory of the runs and the tables")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVIUM_DATA", "../shared/data")))
    cache = Path.home() / ".cache" / "trivium"
    parser.add_argument("--cache", type=Path, default=cache, help="where data are unpacked")
    return parser


def write_table(name: str, run: Callable[[Commands], str], options: Namespace) -> None:
    """Run a study, and write and print its table."""
    found = run(Commands((options.out / name).absolute()))
    (options.out / f"{name}.md").write_text(f"{found}\n", encoding="utf-8")
    print(f"\n{found}", flush=True)


@contextmanager
def one_sentence() -> Iterator[None]:
    """An error of the user's ends the command with its message, an interruption with status 130."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
