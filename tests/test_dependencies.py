"""Every library that is imported is declared in pyproject.toml, and the core imports no library of one modality."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "vision", "audio", "text")
OF_ONE_MODALITY = {
    "pillow": "vision",
    "timm": "vision",
    "torchaudio": "audio",
    "soundfile": "audio",
    "tokenizers": "text",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


REQUIRED = names(PROJECT["dependencies"])
OPTIONAL = names([requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra])


def imported(package: str, top_level: bool) -> dict[str, str]:
    """Third-party modules, with a file that imports each. top_level: only those imported when a file is."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        if top_level and path.name == "pytest_plugin.py":  # which pytest alone loads
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body if top_level else ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules.append(node.module)
            for module in {module.partition(".")[0] for module in modules} - {*PACKAGES, *sys.stdlib_module_names}:
                found.setdefault(module, str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package):
    distributions = packages_distributions()
    for top_level, declared in ((True, REQUIRED), (False, REQUIRED | OPTIONAL)):
        for module, file in imported(package, top_level).items():
            known = {canonical(name) for name in distributions.get(module, [module])}
            assert known & declared, f"{file} imports {module}, which pyproject.toml does not name"
            owners = {owner for name, owner in OF_ONE_MODALITY.items() if name in known}
            assert owners <= {package}, f"{file} imports {module}, a library of {owners}"


def test_what_is_declared_is_imported():
    distributions = packages_distributions()
    modules = {module for package in PACKAGES for module in imported(package, top_level=False)}
    used = {canonical(name) for module in modules for name in distributions.get(module, [module])}
    assert REQUIRED - used == {"tensorboard"}  # torch.utils.tensorboard imports it
