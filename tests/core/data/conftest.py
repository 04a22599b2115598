import pytest
from samplefiles import ROWS, touch


@pytest.fixture(autouse=True)
def in_an_empty_directory(elsewhere):
    """Every test here writes its files into a directory of its own."""


@pytest.fixture
def files():
    touch(*(path for path, _ in ROWS))
