"""Mistakes on a command line: each ends with one sentence and exit code 1, before anything is written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from core.experiments import Modality, train_command


class Mistake(NamedTuple):
    argv: list
    sentence: str
    """A regular expression."""
    files: Mapping[str, str | bytes] = {}
    """Files that are there, by their names."""


def check_mistake(modality: Modality, mistake: Mistake, capsys: pytest.CaptureFixture, while_training: bool) -> None:
    """while_training: the mistake is found only after the run has begun."""
    for name, content in mistake.files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as exit:
        train_command(modality, [str(word) for word in mistake.argv])
    error = capsys.readouterr().err.split("error: ")[-1]
    assert exit.value.code == 1 and len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert re.search(mistake.sentence, error), error
    assert while_training or not Path("runs").exists()
