"""Recipes on real data beside published figures: `python -m benchmarks.results [NAME ...] [--seeds 0 1 2]`.

Each study runs the public commands, each once with its figures kept, and writes its table; the data are no part of the
repository, or are generated. docs/results.md has the tables with their dates and sources.
"""

from collections.abc import Sequence
from functools import partial

from ..transfer.real_data import unpacked
from ..transfer.studies import one_sentence, study_parser, write_table
from .cifar10 import Cifar10
from .listops import ListOps
from .spoken_digits import SpokenDigits
from .sst2 import Sst2

STUDIES = {"cifar10": Cifar10(), "spoken-digits": SpokenDigits(), "sst2": Sst2(), "listops": ListOps()}
GENERATED = ("listops",)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study_parser("benchmarks.results", __doc__, f"of {'; '.join(STUDIES)}; by default all")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in STUDIES]:
        parser.exit(2, f"error: There is no {unknown[0]!r}: choose from {'; '.join(STUDIES)}.\n")
    with one_sentence():
        for name in options.names or STUDIES:
            folder = options.cache / name if name in GENERATED else unpacked(name, options.data, options.cache)
            write_table(name, partial(STUDIES[name].run, folder=folder, seeds=options.seeds), options)


if __name__ == "__main__":
    main()
