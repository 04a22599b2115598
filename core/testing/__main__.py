"""python -m core.testing module:name [--kind ...]: check what a module has under a name, and print the page."""

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import UserError
from .kit import check
from .runner import Report
from .subjects import AttentionSubject, EncoderSubject, Subject, parameters, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m core.testing", description=__doc__)
    parser.add_argument("target", help="module:name of an attention, of what makes an encoder, or of a Subject")
    parser.add_argument("--kind", choices=("attention", "encoder"), help="told by the signature if left out")
    parser.add_argument("--claims", nargs="*", metavar="CLAIM", help="what it claims to do (docs/conformance.md)")
    parser.add_argument("--without", nargs="+", default=(), metavar="CLAIM", help="usual claims that it does not make")
    parser.add_argument("--dim", type=int, default=16, help="width of an encoder's tokens")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks alone")
    parser.add_argument("--timed", action="store_true", help="measure the cost by the clock too")
    given = parser.parse_args(arguments)
    try:
        report = run(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 1 if report.failed else 0


def run(given: argparse.Namespace) -> Report:
    found = find(given.target)
    if isinstance(found, Subject):
        return check(found, given.only)
    kind = given.kind or guess(given.target, found)
    options = {"name": given.target, "claims": given.claims, "timed": given.timed}
    if kind == "attention":
        subject = AttentionSubject(found, **options)
    else:
        subject = EncoderSubject(found, dim=given.dim, **options)
    if absent := [claim for claim in given.without if claim not in subject.claimed]:
        raise UserError(unknown("claim", absent[0], subject.claimed))
    return check(replace(subject, claims=subject.claimed.difference(given.without)), given.only)


def find(target: str) -> Any:
    """What a module has under a name."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{target!r} names nothing: write module:name, as in my_module:my_attention.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs a stranger's code
        raise UserError(f"The module {module_name} can't be imported: {error}.") from None
    if not hasattr(module, name):
        raise UserError(f"The module {module_name} has no {name}.")
    return getattr(module, name)


def guess(target: str, found: Any) -> str:
    """By what must be given to call it: three tensors for an attention, nothing for what makes an encoder."""
    if callable(found):
        empty, variable = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [p for p in parameters(found).values() if p.default is empty and p.kind not in variable]
        if len(needed) in (0, 3):
            return "encoder" if not needed else "attention"
    raise UserError(f"{target} is neither a function of q, k, v nor one of nothing that makes an encoder; use --kind.")


if __name__ == "__main__":
    sys.exit(main())
