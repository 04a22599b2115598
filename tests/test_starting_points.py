"""docs/starting-points.md says what each family of starting points has been run through: it is run again here."""

from pathlib import Path

from processes import start

SCRIPT = Path(__file__).parent / "helpers" / "starting_points.py"


def test_the_tables_are_what_the_code_does(tmp_path):
    """In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold."""
    said = tmp_path / "said"
    process = start(SCRIPT, ["--check"], out=said, err=said)
    process.join()
    assert process.exitcode == 0, said.read_text()
