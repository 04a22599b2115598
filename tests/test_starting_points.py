"""docs/starting-points.md says what each family of starting points has been run through: it is run again here."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "starting_points.py"


def test_the_tables_are_what_the_code_does():
    """In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold."""
    command = [sys.executable, SCRIPT, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
