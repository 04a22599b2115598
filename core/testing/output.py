"""A report for other programs: JSON, and JUnit's XML."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from ..errors import UserError
from .runner import Report, Result


def as_json(report: Report) -> str:
    """An object with the version of torch and a list of results; a number that is not finite is a string."""
    return json.dumps({"torch": torch.__version__, "results": [_fields(r) for r in report.results]}, indent=2) + "\n"


def as_junit(report: Report) -> str:
    """A test suite for each subject, a test case for each check; what is not claimed is skipped."""
    suites = ElementTree.Element("testsuites")
    for subject in dict.fromkeys(result.subject for result in report.results):
        results = [result for result in report.results if result.subject == subject]
        counts = {"failures": sum(r.status == "failed" for r in results), "errors": 0}
        counts["skipped"] = sum(r.status in ("not claimed", "expected failure") for r in results)
        numbers = {key: str(count) for key, count in {"tests": len(results), **counts}.items()}
        suite = ElementTree.SubElement(suites, "testsuite", {"name": subject, **numbers})
        for result in results:
            case = ElementTree.SubElement(suite, "testcase", classname=subject, name=result.check)
            if result.status == "failed":
                ElementTree.SubElement(case, "failure", message=result.message).text = result.explanation
            elif result.status != "passed":
                ElementTree.SubElement(case, "skipped", message=f"{result.status}: {result.message}")
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def write(path: str, make: Callable[[Report], str], report: Report) -> None:
    try:
        Path(path).write_text(make(report), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}.") from None


def check_writable(path: str) -> None:
    """Refuse a file in a folder that does not exist, before the checks are run."""
    if not Path(path).parent.is_dir():
        raise UserError(f"{path} can't be written: there is no folder {Path(path).parent}.")


def _fields(result: Result) -> dict[str, Any]:
    fields: dict[str, Any] = {key: value for key, value in vars(result).items() if value != ""}
    return fields | {"figures": {k: v if math.isfinite(v) else str(v) for k, v in result.figures.items()}}
