"""Who may import whom: the contracts in pyproject.toml."""

from pathlib import Path

from importlinter.cli import lint_imports


def test_imports_keep_to_the_architecture(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert lint_imports(no_cache=True) == 0
