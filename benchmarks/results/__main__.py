"""Recipes on real data beside published figures: `python -m benchmarks.results [NAME ...] [--seeds 0 1 2]`.

Each study runs the public commands, each once with its figures kept, and writes its table; the data are no part of the
repository, or are generated. docs/results.md has the tables with their dates and sources.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core import UserError

from ..transfer.commands import Commands
from ..transfer.real_data import unpacked
from .cifar10 import Cifar10
from .listops import ListOps
from .spoken_digits import SpokenDigits
from .sst2 import Sst2

STUDIES = {"cifar10": Cifar10(), "spoken-digits": SpokenDigits(), "sst2": Sst2(), "listops": ListOps()}
GENERATED = ("listops",)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(STUDIES)}; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="directory of the runs and the tables")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVIUM_DATA", "../shared/data")))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "trivium", help="where data are unpacked"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in STUDIES]:
        parser.exit(2, f"error: There is no {unknown[0]!r}: choose from {'; '.join(STUDIES)}.\n")
    try:
        for name in options.names or STUDIES:
            commands = Commands((options.out / name).absolute())
            folder = options.cache / name if name in GENERATED else unpacked(name, options.data, options.cache)
            found = STUDIES[name].run(commands, folder, options.seeds)
            (options.out / f"{name}.md").write_text(f"{found}\n", encoding="utf-8")
            print(f"\n{found}", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
