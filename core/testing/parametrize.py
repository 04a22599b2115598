"""The checks as tests of pytest: one for each subject and check."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .claims import unknown
from .explain import explain
from .kit import CHECKS
from .recognise import subject_of
from .runner import Check, check_expectations
from .subjects import Subject


@dataclass(frozen=True)
class PytestCheck:
    """A check that reports to pytest: a skip if it is not claimed, an xfail if a failure was expected."""

    check: Check

    @property
    def id(self) -> str:
        return self.check.id

    def __call__(self, subject: Subject) -> None:
        import pytest

        result = self.check(subject)
        if result.status == "not claimed":
            pytest.skip(f"not claimed: {result.message}")
        if result.status == "expected failure":
            pytest.xfail(result.message)
        if result.status == "failed":
            pytest.fail(explain(self.check, subject, result).explanation, pytrace=False)


def parametrize_with_checks(targets: Sequence[Any], *, without: Collection[str] = ()) -> Any:
    """A decorator of `def test_conforms(subject, check): check(subject)`.

    targets: subjects, or what they are made of (`subject_of`).
    without: ids of checks to leave out.
    """
    import pytest

    subjects = [subject_of(target) for target in targets]

    for subject in subjects:
        check_expectations(subject, CHECKS[subject.kind])
    for name in without:
        if not any(check.id == name for checks in CHECKS.values() for check in checks):
            raise UserError(unknown("check", name, {check.id for checks in CHECKS.values() for check in checks}))
    names = [subject.name for subject in subjects]
    if doubled := {name for name in names if names.count(name) > 1 or not name}:
        raise UserError(f"Give each subject a name of its own; there are several called {min(doubled)!r}.")
    cases = [
        pytest.param(subject, PytestCheck(check), id=f"{subject.name}-{check.id}")
        for subject in subjects
        for check in CHECKS[subject.kind]
        if check.id not in without
    ]
    return pytest.mark.parametrize("subject, check", cases)
