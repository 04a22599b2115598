"""Files to read samples from, and the sentence that is raised where they cannot be read."""

from pathlib import Path

import pytest

from core import UserError
from core.data import read_files, read_folder
from core.data.dataset import SplitFractions

SUFFIXES = (".png", ".jpg")
ROWS = [("a.png", "cat"), ("b.png", "dog"), ("c d.png", "cat"), ("é.png", "dog"), ("e.png", "cat"), ("f.png", "dog")]
TABLE = "".join(f"{path},{label}\n" for path, label in [("path", "label"), *ROWS])


def touch(*names: str) -> None:
    """Files that are not empty."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def folder(root: str = "root", classes=("cat", "dog"), count: int = 4, start: int = 0) -> Path:
    touch(*(f"{root}/{name}/{number}.png" for name in classes for number in range(start, start + count)))
    return Path(root)


def read(root: Path = Path("root"), fraction: float = 0.25):
    return read_folder(root, SUFFIXES, SplitFractions(test_fraction=fraction))


def listed(content: str | bytes, name: str = "list.csv", fraction: float = 0.4, **options):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_files(Path(name), SplitFractions(test_fraction=fraction), **options)


def every(data) -> list:
    return [*data.train, *data.validation, *data.test]


def names(samples) -> list[str]:
    return [str(sample.path) for sample in samples]


def refused(work, *words: str) -> str:
    """The message of the error that is raised: one sentence that contains these words."""
    with pytest.raises(UserError) as error:
        work()
    said = str(error.value)
    assert all(word in said for word in words), said
    assert said.endswith(".") and len(said.splitlines()) == 1 and said.isprintable(), said
    return said
