import pytest
from samplefiles import ROWS, touch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files():
    touch(*(path for path, _ in ROWS))
