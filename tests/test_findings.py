"""What the kit found in other libraries is still there: each page's script prints what the page says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from core.private_torch import reset_accelerator

PAGES = sorted((Path(__file__).parent.parent / "docs/findings").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_print_what_the_page_says(page):
    [script] = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    [printed] = re.findall(r"^```text\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    assert not re.search(r"\b(core|vision|audio|text|benchmarks|tests)\b", script)
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 20
    reset_accelerator()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(script, page.name, "exec"), {})
    assert out.getvalue() == printed
