"""Fixtures of several test files. Tests run in two processes (pytest-xdist), with one thread in each of them."""

import os
import random

import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The test runs in an empty directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def few_to_probe(monkeypatch):
    """What a run started from is probed on a few samples."""
    monkeypatch.setattr("core.experiments.experiment.PROBE_SAMPLES", 300)


@pytest.fixture(autouse=True)
def seeds():
    """A test draws the same random numbers, whatever ran before in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
