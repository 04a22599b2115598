"""A full disk and a kill at some of the writes of a run; tests/faults.py takes them all, of runs with figures."""

import faults
import pytest
from forks import FULL, KILL, Commands


@pytest.fixture(scope="module")
def commands():
    with Commands("text.train", *faults.LATER, "undrawn", faults=True) as server:
        yield server


@pytest.mark.parametrize("resumes", [False, True], ids=["new", "resumed"])
def test_a_run_survives_a_full_disk_and_a_kill(commands, tmp_path, resumes):
    faults.make_data(tmp_path)
    command = faults.Moments(commands, "text.train", resumes, tmp_path)
    assert command.writes > 100
    for number, share in enumerate((0.2, 0.5, 0.8) if resumes else (0.02, 0.2, 0.35, 0.5, 0.65, 0.8, 0.97)):
        command.check(int(share * command.writes), (FULL, KILL)[number % 2])
