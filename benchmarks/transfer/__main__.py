"""What learning without labels, and a start, are worth: `python -m benchmarks.transfer [NAME ...] [--seeds 0 1 2]`.

cifar10, spoken-digits and sst2 learn from unlabelled data, which takes hours on 2 cores. Those that begin with tuning
compare ways of tuning a start on a few labels. The data are no part of the repository.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from .cifar10 import Cifar10
from .real_data import unpacked
from .spoken_digits import SpokenDigits
from .sst2 import Sst2
from .studies import one_sentence, study_parser, write_table
from .tuning import TUNING

UNLABELLED = {"cifar10": Cifar10(), "spoken-digits": SpokenDigits(), "sst2": Sst2()}
STUDIES = UNLABELLED | {f"tuning-{data}": study for data, study in TUNING.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study_parser("benchmarks.transfer", __doc__, f"of {'; '.join(STUDIES)}, or how some begin")
    parser.add_argument("--minutes", type=float, default=Cifar10.minutes, help="of each pre-training of cifar10")
    options = parser.parse_args(arguments)
    if unknown := [word for word in options.names if not any(name.startswith(word) for name in STUDIES)]:
        parser.exit(2, f"error: Nothing begins with {unknown[0]!r}: choose from {'; '.join(STUDIES)}.\n")
    with one_sentence():
        for name, study in STUDIES.items():
            if name.startswith(tuple(options.names or [""])):
                study = replace(study, minutes=options.minutes) if isinstance(study, Cifar10) else study
                folder = unpacked(name.removeprefix("tuning-"), options.data, options.cache)
                write_table(name, partial(study.run, folder=folder, seeds=options.seeds), options)


if __name__ == "__main__":
    main()
