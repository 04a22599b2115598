"""The gain from starting with trained weights: `python -m benchmarks.transfer [NAME ...] [--seeds 0 1 2]`.

cifar10, spoken-digits and sst2 learn from unlabelled real data, which is no part of the repository, and need hours on
2 cores; the other studies use embedded data.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from . import embedded
from .cifar10 import Cifar10
from .real_data import unpacked
from .spoken_digits import SpokenDigits
from .sst2 import Sst2
from .studies import one_sentence, study_parser, write_table

STUDIES = {"cifar10": Cifar10(), "spoken-digits": SpokenDigits(), "sst2": Sst2()}


def main(arguments: Sequence[str] | None = None) -> None:
    names = (*STUDIES, *embedded.TRANSFERS)
    parser = study_parser("benchmarks.transfer", __doc__, f"of {'; '.join(names)}, or how some begin")
    parser.add_argument("--minutes", type=float, default=Cifar10.minutes, help="of each pre-training of cifar10")
    options = parser.parse_args(arguments)
    if unknown := [word for word in options.names if not any(name.startswith(word) for name in names)]:
        parser.exit(2, f"error: Nothing begins with {unknown[0]!r}: choose from {'; '.join(names)}.\n")
    with one_sentence():
        for name, study in STUDIES.items():
            if name.startswith(tuple(options.names)):
                study = replace(study, minutes=options.minutes) if isinstance(study, Cifar10) else study
                folder = unpacked(name, options.data, options.cache)
                write_table(name, partial(study.run, folder=folder, seeds=options.seeds), options)
    if not options.names or any(name.startswith(tuple(options.names)) for name in embedded.TRANSFERS):
        embedded.main(options.names, options.seeds)


if __name__ == "__main__":
    main()
