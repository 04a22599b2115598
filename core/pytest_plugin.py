"""The plug-in of pytest: `pytest --conform module:name` makes a test of each check of an attention or a module.

pytest loads it at every start, so that nothing is imported before the option is given.
"""

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conform", "conformance of attention, encoders and models (core.testing)")
    target = "an attention, a module, a function that makes one of nothing, or a Subject; a test for each check"
    group.addoption("--conform", action="append", default=[], metavar="module:name", help=target)
    group.addoption("--conform-device", default="cpu", metavar="DEVICE", help="where the checks run, as in cuda")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if targets := config.getoption("--conform"):
        for target in targets:
            items.extend(Conformance.from_parent(session, name=target).collect())


class Conformance(pytest.Collector):
    """The checks of one target."""

    def collect(self) -> Iterator["CheckItem"]:
        from core.errors import UserError
        from core.testing.kit import CHECKS
        from core.testing.parametrize import PytestCheck
        from core.testing.recognise import load, subject_of

        try:
            subject = subject_of(load(self.name), self.name, device=self.config.getoption("--conform-device"))
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        for check in CHECKS[subject.kind]:
            yield CheckItem.from_parent(self, name=check.id, check=PytestCheck(check), subject=subject)


class CheckItem(pytest.Item):
    """One check of one subject."""

    def __init__(self, *, check: Any, subject: Any, **options: Any):
        super().__init__(**options)
        self.check, self.subject = check, subject

    def runtest(self) -> None:
        self.check(self.subject)

    def reportinfo(self) -> tuple[Any, None, str]:
        return self.path, None, f"{self.subject.name}: {self.name}"
