import json
import random
from pathlib import Path

import pytest

FRUIT = ["apple", "pear", "plum", "cherry", "grape", "melon", "lemon", "peach"]
TOOLS = ["hammer", "saw", "drill", "chisel", "plane", "wrench", "pliers", "file"]


def make_sentences(words: list[str], count: int) -> list[str]:
    generator = random.Random(words[0])
    return [f"the {' and the '.join(generator.sample(words, generator.randint(1, 5)))}" for _ in range(count)]


@pytest.fixture
def listed(tmp_path) -> Path:
    """A manifest of 40 texts in two classes that share few words."""
    rows = [
        (text, label) for label, words in (("fruit", FRUIT), ("tools", TOOLS)) for text in make_sentences(words, 20)
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path
