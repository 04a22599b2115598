"""Run checks over subjects, and report the results."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch

from ..errors import UserError
from .claims import unknown
from .measures import Failed, Figures, named, quiet, unchanged
from .subjects import Subject

Status = Literal["passed", "failed", "expected failure", "not claimed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one check of one subject.

    message: one sentence, or empty.
    smallest: the smallest input that was found to fail, in words.
    script: a script of plain torch that shows the failure, if one could be written.
    """

    subject: str
    check: str
    status: Status
    message: str = ""
    figures: Figures = field(default_factory=dict)
    smallest: str = ""
    script: str = ""

    @property
    def explanation(self) -> str:
        """All that is known of a failure."""
        smallest = f"The smallest input found: {self.smallest}." * bool(self.smallest)
        script = f"```python\n{self.script}```" * bool(self.script)
        return "\n\n".join(part for part in (self.message, smallest, script) if part)


@dataclass(frozen=True)
class Report:
    """The results of all checks, in order."""

    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status == "failed")

    def raise_failures(self) -> None:
        """Raise an AssertionError that names all checks that failed, if any did."""
        if self.failed:
            raise Failed("; ".join(f"{r.subject}: {r.check}: {r.message}" for r in self.failed))

    def page(self) -> str:
        """A markdown page: how many results have each status, a table of each subject, and the failures explained."""
        counts = {status: sum(r.status == status for r in self.results) for status in get_args(Status)}
        lines = [", ".join(f"{count} {status}" for status, count in counts.items())]
        for subject in dict.fromkeys(result.subject for result in self.results):
            lines += ["", f"## {subject}", "", "| check | status | |", "|---|---|---|"]
            for r in self.results:
                if r.subject == subject:
                    details = [r.message] * bool(r.message) + [f"{k} {v:.2g}" for k, v in r.figures.items()]
                    lines.append(f"| {r.check} | {r.status} | {'; '.join(details).replace('|', '/')} |")
        for r in self.failed:
            lines += ["", f"### {r.subject}: {r.check}", "", r.explanation]
        return "\n".join(lines)

    def matrix(self) -> str:
        """A markdown table of checks against subjects: P passed, F failed, x expected failure, - not claimed."""
        letters = {"passed": "P", "failed": "**F**", "expected failure": "x", "not claimed": "-"}
        statuses = {(r.subject, r.check): letters[r.status] for r in self.results}
        subjects, checks = ({key[i]: None for key in statuses} for i in (0, 1))
        lines = ["| check | " + " | ".join(subjects) + " |", "|---" * (len(subjects) + 1) + "|"]
        for check in checks:
            cells = (statuses.get((subject, check), "") for subject in subjects)
            lines.append(f"| {check} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.page()


@dataclass(frozen=True)
class Check:
    """A function of a subject, which raises Failed or returns figures, and the claims that it needs.

    shrinks: whether a smaller input that fails is worth a search: it is fast, and its bounds hold for small inputs.
    """

    function: Any
    needs: tuple[str, ...] = ()
    shrinks: bool = True

    @property
    def id(self) -> str:
        return self.function.__name__.strip("_").replace("_", "-")

    @property
    def sentence(self) -> str:
        return " ".join((self.function.__doc__ or "").split())

    def __str__(self) -> str:
        return self.id

    def __call__(self, subject: Subject) -> Result:
        """Run the check. It never raises: an error is a result."""
        result = partial(self._result, subject)
        missing = [claim for claim in self.needs if claim not in subject.claimed]
        expected = subject.expected_failures.get(self.id)
        if missing:
            return result("not claimed", f"it needs the claim {' and '.join(map(repr, missing))}")
        try:
            # On a CPU without a mode: where one is active, torch's modules take no fast path.
            with quiet(), unchanged(), nullcontext() if subject.device == "cpu" else torch.device(subject.device):
                figures = self.function(subject)
        except Failed as failure:
            status, message, figures = "failed", str(failure), failure.figures
        except (Exception, SystemExit) as error:  # foreign code may raise anything, and the other checks have to run
            status, message, figures = "failed", f"raises {named(error)}{subject.hint()}", {}
        else:
            if expected is not None:
                return result("failed", f"passes, but was expected to fail ({expected})", figures)
            return result("passed", "", figures)
        return result(status, message, figures) if expected is None else result("expected failure", expected, figures)

    def _result(
        self, subject: Subject, status: Status, message: str = "", figures: Mapping[str, float] | None = None
    ) -> Result:
        return Result(subject=subject.name, check=self.id, status=status, message=message, figures=dict(figures or {}))


def check_expectations(subject: Subject, checks: Sequence[Check]) -> None:
    """Refuse expected failures of checks that do not exist, or that need a claim the subject does not make."""
    known = {check.id: check for check in checks}
    for name, reason in subject.expected_failures.items():
        if name not in known:
            raise UserError(unknown("check", name, known))
        if missing := [claim for claim in known[name].needs if claim not in subject.claimed]:
            raise UserError(f"{name} can't be expected to fail ({reason}): {missing[0]!r} is not claimed.")
