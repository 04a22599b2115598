"""Fixtures of the tests of attention."""

import jaxtyping
import pytest


@pytest.fixture
def as_in_production(monkeypatch):
    """Shapes in signatures are not checked, so that attention's own checks are tested."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
