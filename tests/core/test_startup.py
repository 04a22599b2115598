"""Commands put garbage collection off until they begin; who imports a package as a library sees nothing of it."""

import subprocess
import sys

import pytest

PACKAGE = "from core.startup import import_quickly\nimport_quickly(__name__)\n"
COMMAND = """
import gc
from core.startup import imported
off = not gc.isenabled()
imported()
print(off, gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    "words, off",
    [
        (["-m", "commands.one"], True),
        (["-X", "utf8", "-m", "commands.one", "-m", "other.one"], True),
        (["-mcommands.one"], True),
        (["-um", "commands.one"], True),
        (["-W", "ignore", "-mother.one", "commands.one"], False),
        (["-m", "other.one", "-m", "commands.one"], False),
        (["script.py", "-m", "commands.one"], False),
        (["-c", "import commands.one"], False),
    ],
)
def test_only_a_command_of_the_package_puts_garbage_collection_off(words, off, tmp_path):
    for name in ("commands", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "commands" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "commands" / "one.py").write_text(COMMAND)
    (tmp_path / "other" / "__init__.py").write_text("import commands")
    for script in ("other/one.py", "script.py"):
        (tmp_path / script).write_text("import commands.one")
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{off} True {off}\n", done.stderr


def test_who_works_without_garbage_collection_is_left_alone():
    script = "import gc; gc.disable(); from core.startup import imported; imported(); print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
