"""python -m core.testing module:name [--kind ...]: run the checks of an object in a module, and print a page."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import UserError
from .claims import unknown
from .kit import check
from .runner import Report
from .subjects import AttentionSubject, EncoderSubject, Subject, parameters


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m core.testing", description=__doc__)
    parser.add_argument("target", help="module:name of an attention, a function that makes an encoder, or a Subject")
    parser.add_argument("--kind", choices=("attention", "encoder"), help="by default it follows from the signature")
    parser.add_argument("--claims", nargs="*", metavar="CLAIM", help="claims to check (docs/conformance.md)")
    parser.add_argument("--without", nargs="+", default=(), metavar="CLAIM", help="default claims to leave out")
    parser.add_argument("--dim", type=int, default=16, help="width of an encoder's tokens")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="ids of the checks to run")
    parser.add_argument("--timed", action="store_true", help="also measure the cost by the clock")
    options = parser.parse_args(arguments)
    try:
        report = run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 1 if report.failed else 0


def run(options: argparse.Namespace) -> Report:
    target = load(options.target)
    if isinstance(target, Subject):
        return check(target, options.only)
    common = {"name": options.target, "claims": options.claims, "timed": options.timed}
    if (options.kind or kind_of(options.target, target)) == "attention":
        subject = AttentionSubject(target, **common)
    else:
        subject = EncoderSubject(target, dim=options.dim, **common)
    if absent := [claim for claim in options.without if claim not in subject.claimed]:
        raise UserError(unknown("claim", absent[0], subject.claimed))
    return check(replace(subject, claims=subject.claimed.difference(options.without)), options.only)


def load(target: str) -> Any:
    """The object that module:name refers to."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{target!r} is not a name: write module:name, as in my_module:my_attention.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs foreign code
        raise UserError(f"The module {module_name} can't be imported: {error}.") from None
    if not hasattr(module, name):
        raise UserError(f"The module {module_name} has no {name}.")
    return getattr(module, name)


def kind_of(name: str, target: Any) -> str:
    """By the parameters without defaults: an attention has three, a function that makes an encoder none."""
    if callable(target):
        empty, variable = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [p for p in parameters(target).values() if p.default is empty and p.kind not in variable]
        if len(needed) in (0, 3):
            return "encoder" if not needed else "attention"
    raise UserError(f"{name} is neither a function of q, k, v nor one that makes an encoder of nothing; use --kind.")


if __name__ == "__main__":
    sys.exit(main())
