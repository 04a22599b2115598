"""A table of docs/results.md: `python -m benchmarks.results NAME [--seeds 0 1 2]`.

The data of sst2 are no part of the repository; those of listops are generated.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from core import UserError

from ..transfer.commands import Commands
from ..transfer.real_data import unpacked
from .listops import ListOps
from .sst2 import Sst2

STUDIES = {"sst2": Sst2(), "listops": ListOps()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/results"), help="directory of the runs and the tables")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVIUM_DATA", "../shared/data")))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "trivium", help="where data are unpacked"
    )
    options = parser.parse_args(arguments)
    commands = Commands((options.out / options.name).absolute())
    try:
        folder = partial(unpacked, data=options.data, cache=options.cache)
        found = STUDIES[options.name].run(commands, folder, options.seeds)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    (options.out / f"{options.name}.md").write_text(f"{found}\n", encoding="utf-8")
    print(f"\n{found}", flush=True)


if __name__ == "__main__":
    main()
