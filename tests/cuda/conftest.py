"""Tests that need a CUDA device: `pytest -m cuda`. Without one they are skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cuda" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))
