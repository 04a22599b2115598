"""Real data for the studies: zip files that are unpacked once, and lists of some of their files."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from zipfile import ZipFile

from core import UserError

Rows = list[dict[str, str]]
"""Of a table; each has the same columns."""


def unpacked(name: str, data: Path, cache: Path) -> Path:
    """The folder of data/NAME.zip, unpacked in the directory `cache`."""
    folder, archive = cache / name, data / f"{name}.zip"
    if not folder.exists():
        if not archive.is_file():
            raise UserError(f"There is no {archive}: name the folder that holds it by --data or TRIVIUM_DATA.")
        part = cache / f"{name}.partial"
        rmtree(part, ignore_errors=True)
        with ZipFile(archive) as file:
            file.extractall(part)
        (part / name).rename(folder)
        rmtree(part)
    return folder


def rows_of(table: Path) -> Rows:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(file: Path, rows: Rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def few_and_as_many(rows: Sequence[dict[str, str]], count: int, seed: int) -> Rows:
    """So many rows of each label to train on, and as many others to validate on, drawn at random."""
    drawn = few_of_each(rows, 2 * count, seed)
    return [{**row, "split": ("train", "validation")[place % 2]} for place, row in enumerate(drawn)]


def few_of_each(rows: Sequence[dict[str, str]], count: int, seed: int) -> Rows:
    """So many rows of each label, drawn at random."""
    draw, labels = random.Random(seed), sorted({row["label"] for row in rows})
    return [row for label in labels for row in draw.sample([row for row in rows if row["label"] == label], count)]
