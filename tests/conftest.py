"""Fixtures of several test files. Tests run in two processes (pytest-xdist), with one thread in each of them."""

import atexit
import gc
import os
import random
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest

os.environ["OMP_NUM_THREADS"] = "1"
gc.disable()  # until all is imported, which stays

LONG = (
    "starting_points",
    "export",
    "jobs",
    "adapt",
    "pairs",
    "mutants",
    "install",
    "sweep",
    "tool",
    "hostile",
    "faults",
)


def pytest_configure(config):
    """Imports, where tests run: the process that hands them out to others needs none of these, which take seconds."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import checked_shapes  # noqa: F401, before all that it checks
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest files first: taken last, one of them would keep one process busy and leave the other idle."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_collection_finish():
    """Garbage is looked for only among what tests make: what is imported are a million objects, which stay."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
    atexit.register(gc.freeze)


@pytest.fixture(autouse=True, scope="session")
def no_power_cut():
    """Nothing waits for the disk, which takes 4 ms a file: what a killed process wrote is in the system's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The test runs in an empty directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_figures():
    """Figures of reports are empty: to draw them takes most of a short run's time."""
    from plain import no_figures

    with no_figures():
        yield


@pytest.fixture
def few_to_probe(monkeypatch):
    """What a run started from is probed on a few samples."""
    monkeypatch.setattr("core.experiments.experiment.PROBE_SAMPLES", 300)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Callable[[str], Path]:
    """The unpacked folder of NAME.zip in TRIVIUM_DATA or ../shared/data; the test is skipped where it is not there."""
    from benchmarks.transfer.real_data import unpacked

    data = Path(os.environ.get("TRIVIUM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    cache = tmp_path_factory.mktemp("real-data")

    def folder(name: str) -> Path:
        if not (data / f"{name}.zip").is_file():
            pytest.skip(f"needs {name}.zip, of which TRIVIUM_DATA names the folder")
        return unpacked(name, data, cache)

    return folder


@pytest.fixture
def as_in_production(monkeypatch):
    """Shapes in signatures are not checked: by tests of our own checks, and by long ones of code that others check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def seeds():
    """A test draws the same random numbers, whatever ran before in this process."""
    import numpy as np

    from core.testing.measures import seed_torch

    random.seed(0)
    np.random.seed(0)
    seed_torch(0)
