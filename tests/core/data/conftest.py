import pytest
from samplefiles import ROWS, touch

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def files():
    touch(*(path for path, _ in ROWS))
