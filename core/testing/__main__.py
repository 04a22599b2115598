"""python -m core.testing module:name: run the checks of an attention or a module, and print a page.

The exit status is 0 if all passes, 1 if a check failed, 2 if the command is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import UserError
from .claims import unknown
from .kit import check
from .output import as_json, as_junit, check_writable, write
from .recognise import load, subject_of
from .runner import Report

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WRONG_USE = 2  # argparse's own


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m core.testing", description=__doc__)
    target = "module:name of an attention, a module, a function that makes one of nothing, or a Subject"
    parser.add_argument("target", help=target)
    parser.add_argument("--claims", nargs="*", metavar="CLAIM", help="claims to check (docs/conformance.md)")
    parser.add_argument("--without", nargs="+", default=(), metavar="CLAIM", help="default claims to leave out")
    parser.add_argument("--dim", type=int, help="width of an encoder's tokens, where it can't be found")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="ids of the checks to run")
    parser.add_argument("--device", default="cpu", help="where it runs, as in cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="in which results are compared; float64 where it is claimed")
    parser.add_argument("--timed", action="store_true", help="also measure the cost by the clock")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON, too")
    parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit's XML, too")
    options = parser.parse_args(arguments)
    try:
        files = {path: make for path, make in ((options.json, as_json), (options.junit, as_junit)) if path}
        for path in files:
            check_writable(path)
        report = run(options)
        for path, make in files.items():
            write(path, make, report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    print(report)
    return 1 if report.failed else 0


def run(options: argparse.Namespace) -> Report:
    subject = subject_of(
        load(options.target),
        options.target,
        claims=options.claims,
        dim=options.dim,
        timed=options.timed,
        device=options.device,
        precision=DTYPES.get(options.dtype),
    )
    if absent := [claim for claim in options.without if claim not in subject.claimed]:
        raise UserError(unknown("claim", absent[0], subject.claimed))
    if options.without:
        subject = replace(subject, claims=subject.claimed.difference(options.without, subject.claims_by_options()))
    return check(subject, options.only)


if __name__ == "__main__":
    sys.exit(main())
