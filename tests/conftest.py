"""What holds for all tests.

Two processes share them (pytest-xdist): one thread each, in what they start as well.
"""

import os
import random
from functools import partial

import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_tones(monkeypatch):
    """Keypad tones are tested on a sixth of the usual clips: each key in each noise at each level once."""
    import audio.datasets
    from audio.dtmf import TestClips

    monkeypatch.setattr(audio.datasets, "TestClips", partial(TestClips, repeats=1))


@pytest.fixture(autouse=True)
def few_to_probe(monkeypatch):
    """What a run started from is probed on a few samples."""
    monkeypatch.setattr("core.experiments.experiment.PROBE_SAMPLES", 300)


@pytest.fixture(autouse=True)
def seeds():
    """Whatever ran before in this process, a test draws the same."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
