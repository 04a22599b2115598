"""The gain from starting with trained weights: `python -m benchmarks.transfer [NAME ...] [--seeds 0 1 2]`.

cifar10, spoken-digits and sst2 learn from unlabelled real data, which is no part of the repository, and need hours on
2 cores; the other studies use embedded data.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core import UserError

from . import embedded
from .cifar10 import Cifar10
from .commands import Commands
from .real_data import unpacked
from .spoken_digits import SpokenDigits
from .sst2 import Sst2

STUDIES = {"cifar10": Cifar10(), "spoken-digits": SpokenDigits(), "sst2": Sst2()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    names = (*STUDIES, *embedded.TRANSFERS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(names)}, or how some begin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=Cifar10.minutes, help="of each pre-training of cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="directory of the runs and the tables")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVIUM_DATA", "../shared/data")))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "trivium", help="where data are unpacked"
    )
    options = parser.parse_args(arguments)
    if unknown := [word for word in options.names if not any(name.startswith(word) for name in names)]:
        parser.exit(2, f"error: Nothing begins with {unknown[0]!r}: choose from {'; '.join(names)}.\n")
    try:
        for name, study in STUDIES.items():
            if name.startswith(tuple(options.names)):
                study = replace(study, minutes=options.minutes) if isinstance(study, Cifar10) else study
                commands = Commands((options.out / name).absolute())
                found = study.run(commands, unpacked(name, options.data, options.cache), options.seeds)
                (options.out / f"{name}.md").write_text(f"{found}\n", encoding="utf-8")
                print(f"\n{found}", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if not options.names or any(name.startswith(tuple(options.names)) for name in embedded.TRANSFERS):
        embedded.main(options.names, options.seeds)


if __name__ == "__main__":
    main()
